"""The cards of published directories: what they say, and that they say it each time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.artifacts import digest
from lors_cli.models import source
from lors_cli.run import card, manifest
from lors_cli.run.lineage import Original
from lors_cli.sequential.record import Record

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
HUB_ID = "owner/tiny-model"
SHA = "0123456789abcdef0123456789abcdef01234567"


def read(directory: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card, as the hub's own library reads them."""
    made = ModelCard((directory / "README.md").read_text())
    metadata: dict[str, Any] = made.data.to_dict()
    return metadata, made.text


def example(directory: Path, **names: str) -> dict[str, Any]:
    """What the card's example of loading defines, with the `names` in it filled in."""
    lines = read(directory)[1].split("```python\n")[1].split("```")[0]
    for name, value in {card.HERE: str(directory), **names}.items():
        lines = lines.replace(name, value)
    defined: dict[str, Any] = {}
    exec(lines, defined)  # noqa: S102 - our own card
    return defined


@pytest.fixture
def from_hub(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What fetching HUB_ID gives: the dense model with a card of its own."""
    path = tmp_path / f"hub/snapshots/{SHA}"
    monkeypatch.setattr(source, "_snapshot", lambda *_, **__: path)
    shutil.copytree(dense, path)
    (path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\nlanguage: [en, de]\nbase_model: owner/older\n"
        "tags: [dense]\nmodel-index: []\n---\nReaches 99% on everything.\n"
    )
    (path / "LICENSE").write_text("do as you like")
    return path


def test_every_stage_says_what_it_made(lors: Lors, write_config: WriteConfig, from_hub: Path, tmp_path: Path) -> None:
    lors("run", write_config(model=HUB_ID))
    run = tmp_path / "run"
    inherited = {"license": "other", "license_name": "tiny", "license_link": "LICENSE", "language": ["en", "de"]}

    metadata, text = read(run / "pruned")
    assert metadata == {
        "base_model": HUB_ID,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lors", "sparse", "pruned", "wanda", "2:4"],
        **inherited,
    }
    assert "# tiny-model, 50% sparse (2:4)" in text
    assert "[owner/tiny-model](https://huggingface.co/owner/tiny-model)" in text
    assert "99%" not in text
    assert "arXiv 2306.11695" in text
    assert "| q_proj    |      2 | 0.5000 | 0.5000 |     2:4 |" in text
    recorded = json.loads((run / "pruned/lors.json").read_text())["request"]["settings"]
    assert recorded["calibration_source"]["digest"] in text
    assert f"8 x 32 tokens, digest of these `{recorded['calibration_tokens']}`" in text
    assert 'sparsity: "2:4"' in text
    assert "transformers " in text
    assert example(run / "pruned")["model"].num_parameters() > 0

    metadata, text = read(run / "merged")
    assert metadata["base_model"] == HUB_ID
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["tags"] == ["lors", "sparse", "pruned", "wanda", "2:4"]
    assert metadata["license_name"] == "tiny"
    for step in ("1. Pruned with wanda to 2:4", "2. Trained with lors, rank 4", "3. Merged."):
        assert step in text
    assert "training: python-topics, limit 3" in text

    metadata, text = read(run / "adapter")
    assert metadata["library_name"] == "lors"  # not peft, which refuses it
    assert "base_model" not in metadata  # that is the pruned model, which has no id
    assert json.loads((run / "pruned/lors.json").read_text())["digest"] in text
    example(run / "adapter", THE_MODEL=str(run / "pruned"))
    assert not (run / "eval/README.md").exists()
    for directory in ("pruned", "adapter", "merged"):
        content = (run / directory / "README.md").read_text()
        assert str(tmp_path) not in content
        assert manifest.read(run / directory).created[:10] not in content  # type: ignore[union-attr]


def test_of_a_local_model_only_the_name_is_known(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config(prune={"method": "magnitude", "sparsity": "2:4"}))
    metadata, text = read(tmp_path / "run/pruned")
    assert not {"base_model", "license", "language", "datasets"} & metadata.keys()
    assert "`model`, 50% sparse (2:4), made by `lors prune`" in text
    assert "## Data" not in text


def test_lora_is_shown_as_what_it_is(lors: Lors, write_config: WriteConfig, from_hub: Path, tmp_path: Path) -> None:
    config = write_config(
        prune=..., train__input=HUB_ID, train__method="lora", train__target_modules=["*"], merge={"dense": True}
    )
    lors("train", config)
    lors("merge", config)
    metadata, text = read(tmp_path / "run/adapter")
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert metadata["base_model"] == HUB_ID
    assert "PeftModel.from_pretrained" in text
    example(tmp_path / "run/adapter", **{HUB_ID: str(from_hub)})
    metadata, text = read(tmp_path / "run/merged")
    assert metadata["tags"] == ["lors", "lora"]
    assert "tiny-model, dense, tuned" in text
    assert "Merged; there was no mask to keep." in text


def test_smaller_models_and_recovered_adapters_load_as_the_card_says(
    lors: Lors, write_config: WriteConfig, from_hub: Path, tmp_path: Path
) -> None:
    pruning = {"method": "structured_random", "ratio": 0.5, "keep_first": 1, "keep_last": 0}
    config = write_config(model=HUB_ID, prune=pruning, train__method="lora", recover={}, eval=...)
    lors("run", config)
    run = tmp_path / "run"
    metadata, text = read(run / "pruned")
    assert metadata["library_name"] == "lors"  # plain transformers refuses it
    assert metadata["tags"] == ["lors", "pruned", "structured_random"]
    assert "times smaller, made by `lors prune`" in text
    assert "a ratio of 0.5, from " in text
    assert "## Sparsity" not in text
    whole = AutoModelForCausalLM.from_pretrained(from_hub)
    assert example(run / "pruned")["model"].num_parameters() < whole.num_parameters()

    assert read(run / "adapter")[0]["library_name"] == "lors"
    example(run / "adapter", THE_MODEL=str(run / "pruned"))

    metadata, text = read(run / "recovered")
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert metadata["base_model"] == HUB_ID
    assert "3. Recovered:" in text
    example(run / "recovered", **{HUB_ID: str(from_hub)})

    metadata, text = read(run / "merged")
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("transformers", "finetune")
    assert "# tiny-model, dense, tuned" in text
    assert example(run / "merged")["model"].num_parameters() == whole.num_parameters()


def test_a_killed_run_ends_with_the_same_card(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, final = write_config(), tmp_path / "run/pruned"
    lors("prune", config)
    whole = (final / "README.md").read_bytes()
    shutil.rmtree(final)
    original = Record.add

    def add(self: Record, *args: Any) -> None:
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "add", add)
    lors("prune", config, status=130)
    monkeypatch.undo()
    assert "going on with what an interrupted run left" in lors("prune", config).stderr
    assert (final / "README.md").read_bytes() == whole


def test_a_card_may_be_edited(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config()
    lors("prune", config)
    pruned = tmp_path / "run/pruned"
    (pruned / "README.md").write_text("words of my own")
    assert digest.of_directory(pruned) == json.loads((pruned / "lors.json").read_text())["digest"]
    assert "up to date" in lors("prune", config).stderr
    lors("train", config)
    lors("merge", config)
    assert "words of my own" not in (tmp_path / "run/merged/README.md").read_text()


def test_a_base_with_a_strange_card_is_a_base(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "model")
    for content in ("no metadata", "---\n- a list\n---\n", "---\n[broken: {\n---\n", "---\nlanguage: en\n---\n"):
        (tmp_path / "model/README.md").write_text(content)
        assert Original.at(tmp_path / "model").name == "model"
    assert Original.at(tmp_path / "model").metadata == {"language": "en"}


def test_the_datasets_of_the_hub_are_named(tmp_path: Path) -> None:
    shared = {"versions": {"python": "3"}, "input_paths": {}, "digest": "d"}
    dataset = {"path": "owner/texts", "name": "small", "limit": None}
    trained = {
        "stage": "train",
        "request": {
            "settings": {
                "method": "lors",
                "rank": 1,
                "alpha": 1.0,
                "learning_rate": 1e-3,
                "dataset": dataset,
                "data": {"train.dataset": {"path": "owner/texts", "name": "small"}},
            },
            "inputs": {"pruned": "p"},
        },
        "init": "random",
        "steps": 1,
        "tokens": 2,
        "trainable_parameters": 3,
        "linears": 4,
        **shared,
        "input_paths": {"pruned": "/nowhere/pruned"},
    }
    rendered = ModelCard(card.render(tmp_path / "adapter", manifest.parse(trained), "model: x"))
    assert rendered.data.to_dict()["datasets"] == ["owner/texts"]
    assert "* training: owner/texts, name small" in rendered.text


def test_the_card_of_a_hub_model_is_fetched_if_there_is_one(from_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(model: str, name: str, revision: str) -> str:
        asked.append((model, name, revision))
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert source.complete(source.resolve(HUB_ID)) == from_hub
    assert source.hub_id(from_hub) == HUB_ID
    assert asked == [(HUB_ID, "README.md", SHA)]


def test_data_of_an_alignment_are_not_those_of_the_training(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = jsonl([{"text": "one two three " * 40}], "general.jsonl")
    align = {"method": "lors", "rank": 2, "dataset": str(rows), "sequence_length": 32, "max_steps": 1, "batch_size": 1}
    lors("run", write_config(align=align, train__max_steps=1, eval=...))
    text = read(tmp_path / "run/merged")[1]
    used = [line[2:].split(",")[0] for line in text.splitlines() if line.startswith(("* alignment", "* training"))]
    assert used == ["alignment: general.jsonl", "training: python-topics"]

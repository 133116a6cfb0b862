import json
import re
from pathlib import Path
from typing import Any

import pytest

from lors_cli.errors import LorsError
from lors_cli.run import facts, manifest
from lors_cli.run.facts import Merged, Pruned, Trained
from lors_cli.run.manifest import Request

# Written by version 0.1.0, with two of the linears each: of a prune, a structured one, and each other stage.
OLD = [json.loads(line) for line in Path(__file__).with_name("manifests.jsonl").read_text().splitlines()]
BY_STAGE = {content["stage"]: content for content in OLD}


def store(directory: Path, content: object) -> Path:
    (directory / manifest.NAME).write_text(json.dumps(content, indent=2) + "\n")
    return directory


@pytest.mark.parametrize("content", OLD, ids=[content["stage"] for content in OLD])
def test_an_old_manifest_is_read_as_it_was(tmp_path: Path, content: dict[str, Any]) -> None:
    made = manifest.read(store(tmp_path, content))
    assert made is not None
    assert type(made.facts) is facts.FACTS[content["stage"]]
    assert made.facts.model_extra == {}  # each of its facts is known
    assert made.request == Request(**content["request"])
    assert json.dumps(made.content) == json.dumps(content)


def test_facts_have_their_names() -> None:
    pruned, aligned, trained = (manifest.parse(BY_STAGE[stage]).facts for stage in ("prune", "align", "train"))
    assert isinstance(pruned, Pruned)
    assert pruned.reduction == pytest.approx(pruned.parameters["before"] / pruned.parameters["after"])  # type: ignore[index]
    assert isinstance(trained, Trained)
    assert isinstance(aligned, Trained | Merged)
    assert (trained.steps, aligned.steps) == (3, 3)  # type: ignore[union-attr]


def test_which_models_an_adapter_and_a_pruned_model_belong_to() -> None:
    pruned, aligned, adapter, recovered = (manifest.parse(BY_STAGE[s]) for s in ("prune", "align", "train", "recover"))
    assert pruned.original_digest == pruned.inputs["model"]
    assert aligned.original_digest == BY_STAGE["align"]["original"]
    assert adapter.model_digest == adapter.inputs["pruned"]
    assert recovered.model_digest == recovered.inputs["model"]


def test_what_another_version_wrote_besides_is_kept(tmp_path: Path) -> None:
    content = {**BY_STAGE["merge"], "mood": {"a": 1.5}}
    made = manifest.read(store(tmp_path, content))
    assert made is not None
    assert made.content == content
    later = {"stage": "quantize", "request": {"settings": {}, "inputs": {}}, "digest": "d", "bits": 4}
    assert manifest.parse(later).content == later


@pytest.mark.parametrize(
    ("stage", "changes", "reason"),
    [
        ("merge", {"sparsity": "half"}, "sparsity"),
        ("merge", {"zeros": True}, "zeros"),
        ("merge", {"modules": [1]}, "modules"),
        ("align", {"original": 3}, "original"),
        ("eval", {"models": {"dense": 7}}, "models.dense"),
        ("train", {"digest": None}, "digest"),
        ("train", {"request": {"settings": {}, "inputs": {"pruned": 5}}}, "request.inputs.pruned"),
        ("train", {"stage": ["train"]}, "stage"),
    ],
)
def test_a_manifest_of_wrong_types_is_damaged(tmp_path: Path, stage: str, changes: dict[str, Any], reason: str) -> None:
    store(tmp_path, {**BY_STAGE[stage], **changes})
    with pytest.raises(LorsError, match=rf"{re.escape(str(tmp_path))}/lors.json is damaged \({reason}.*--force"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"stage": "prune"}'])
def test_what_is_not_a_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(LorsError, match="is damaged"):
        manifest.read(tmp_path)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None


def test_hub_ids_are_written_only_where_there_are_some(tmp_path: Path) -> None:
    request = Request(settings={"method": "wanda"}, inputs={"model": "d"})
    local = manifest.build(tmp_path, "prune", request, Pruned(sparsity=0.5), 2.0, config={}, hub_ids={})
    assert "hub_ids" not in local.content
    assert list(local.content)[4:7] == ["digest", "sparsity", "config"]
    other = manifest.build(tmp_path, "prune", request, Pruned(), 2.0, hub_ids={"model": "owner/name"})
    assert other.content["hub_ids"] == {"model": "owner/name"}

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.quantization.grid import Grid
from tests import quantized

Lors = Callable[..., Result]
PROMPTS = ["Numbers and words", "A list"]


def answers(text: str) -> list[list[str]]:
    return [[one["text"] for one in entry["answers"]] for entry in json.loads(text)]


def test_models_side_by_side(lors: Lors, dense: Path, pruned: Path, tmp_path: Path) -> None:
    lors("pack", pruned, packed := tmp_path / "packed")
    (tmp_path / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n  \n")
    lors("pack", coded := quantized.write(pruned, tmp_path / "coded", Grid(4, 16)), coded_packed := tmp_path / "codes")
    models, few = [dense, pruned, packed, coded, coded_packed], ["--max-new-tokens", 7, "--no-chat-template"]
    made = lors("generate", *models, "--prompts", tmp_path / "prompts.txt", *few, "--json")
    assert "2 empty lines" in made.stderr
    assert [entry["prompt"] for entry in json.loads(made.stdout)] == PROMPTS
    tokenizer = AutoTokenizer.from_pretrained(dense)
    for prompt, (of_dense, of_pruned, of_packed, *of_codes) in zip(PROMPTS, answers(made.stdout), strict=True):
        assert of_packed == of_pruned
        assert of_codes[0] == of_codes[1]
        for path, text in ((dense, of_dense), (pruned, of_pruned)):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            model = AutoModelForCausalLM.from_pretrained(path)
            exact = model.generate(ids, max_new_tokens=7, do_sample=False)[0, ids.shape[1] :]
            assert text == tokenizer.decode(exact, skip_special_tokens=True)
    entry = json.loads(made.stdout)[0]["answers"]
    assert [one["model"] for one in entry] == [str(path) for path in models]
    assert entry[4]["weight_bytes"] < entry[2]["weight_bytes"] < entry[1]["weight_bytes"]
    assert entry[0]["prompt_tokens"] == len(tokenizer(PROMPTS[0]).input_ids)
    both = lors("generate", pruned, "--packed", "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *few).stdout
    for (text,) in answers(
        lors("generate", pruned, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *few, "--json").stdout
    ):
        assert text in both
    assert both.count("tokens/s") == 2


def test_drawn_tokens_repeat(lors: Lors, dense: Path) -> None:
    drawn = ["--temperature", 1.5, "--top-p", 0.9, "--max-new-tokens", 12, "--json"]
    first, again, other = (
        answers(lors("generate", dense, "--prompt", "A list", *drawn, "--seed", seed).stdout) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_chat_template(lors: Lors, make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}<a>{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ask = ["generate", model, "--prompt", "A list", "--max-new-tokens", 2, "--json"]
    with_template = json.loads(lors(*ask).stdout)[0]["answers"][0]
    assert with_template["prompt_tokens"] == len(tokenizer("<user>A list<a>").input_ids)
    without = json.loads(lors(*ask, "--no-chat-template").stdout)[0]["answers"][0]
    assert without["prompt_tokens"] == len(tokenizer("A list").input_ids)
    (model / "chat_template.jinja").write_text("{{ raise_exception('system first') }}")
    assert "--no-chat-template" in lors(*ask, status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "neither"),
        (["--prompt", "a", "--prompts", "b"], "both"),
        (["--prompt", " "], "an empty one"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "a", "--max-new-tokens", "256"], "256 tokens, the positions"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature"),
        (["--prompt", "a", "--top-p", "0"], "--top-p"),
        (["--prompt", "a", "--top-p", "0.5"], "--temperature above 0"),
        (["--prompt", "a", "--dtype", "int4"], "--dtype"),
        (["--prompt", "a", "--device", "nowhere"], "device"),
    ],
)
def test_wrong_requests(lors: Lors, dense: Path, arguments: list[str], words: str) -> None:
    assert words in lors("generate", dense, *arguments, status=2).stderr


def test_wrong_files(lors: Lors, dense: Path, tmp_path: Path) -> None:
    for content in (b"", b" \n\n", b"\xff\xfe"):
        (tmp_path / "prompts.txt").write_bytes(content)
        assert "--prompts" in lors("generate", dense, "--prompts", tmp_path / "prompts.txt", status=2).stderr
    assert "MODEL" in lors("generate", tmp_path / "absent", "--prompt", "a", status=2).stderr


def test_a_model_is_loaded_once(lors: Lors, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lors_cli.models import load

    loaded: list[Path] = []
    make = load.load_model

    def noted(path: Path, *given: Any, **named: Any) -> Any:
        loaded.append(path)
        return make(path, *given, **named)

    monkeypatch.setattr(load, "load_model", noted)
    made = lors("generate", dense, dense, "--prompt", "A list", "--max-new-tokens", 2, "--json").stdout
    assert loaded == [dense]
    ((first, second),) = answers(made)
    assert first == second
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "lors.json"])
def test_an_edited_directory_is_refused(
    lors: Lors, write_config: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    lors("prune", write_config(prune__method="magnitude", prune__calibration=...))
    edited = tmp_path / "run/pruned" / name
    asked = ("generate", edited.parent, "--prompt", "def", "--max-new-tokens", "1")
    lors(*asked)
    content = json.loads(edited.read_text())
    edited.write_text(json.dumps({**content, "rms_norm_eps": 1e-2}))
    assert "edited" in lors(*asked, status=1).stderr
    (edited.parent / "lors.json").unlink()  # as the message says
    lors(*asked)

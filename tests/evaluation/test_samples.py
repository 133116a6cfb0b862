"""What models say: the answers are transformers' greedy ones, kept over interruptions, and shown side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.evaluation import samples
from lors_cli.evaluation.presets import SAMPLES
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import from_tensors
from lors_cli.reporting import page, text
from lors_cli.tools.report import collect
from tests import quantized
from tests.evaluation.tasks import results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
PROMPTS = ["Numbers and words", "A | list\nof *lines*"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def greedy(directory: Path, prompt: str, tokens: int) -> str:
    """What transformers' own generate gives after a user's turn, or after the text where there is no template."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = prompt
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt").input_ids
    made = AutoModelForCausalLM.from_pretrained(directory).generate(ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def without_template(model: Path) -> Path:
    (model / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(model).chat_template is None
    return model


def test_all_kinds_of_models_answer_and_go_on_after_an_interruption(
    lors: Lors, write_config: WriteConfig, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lors("pack", pruned, packed := tmp_path / "packed")
    models = ["dense", "pruned", "tuned", "merged", str(packed)]
    asked = {"prompts": PROMPTS, "max_new_tokens": 5}
    config = write_config(eval__models=models, eval__samples=asked, eval__perplexity=...)
    calls, answers = [], samples.Samples.answers

    def interrupted(self: Any, name: str, *given: Any) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(self, name, *given)

    monkeypatch.setattr(samples.Samples, "answers", interrupted)
    lors("run", config, status=130)
    shown = lors("run", config).stdout
    assert calls == ["dense", "pruned", "tuned", "tuned", "merged", str(packed)], "each model once, but for the third"
    made = results(tmp_path)
    said = {name: [one["text"] for one in entry["samples"]] for name, entry in made["models"].items()}
    config_of_run = json.loads(config.read_text())
    places = {
        "dense": Path(config_of_run["model"]),
        "pruned": tmp_path / "run/pruned",
        "merged": tmp_path / "run/merged",
    }
    for name, directory in {**places, str(packed): pruned}.items():
        assert said[name] == [greedy(directory, prompt, 5) for prompt in PROMPTS], name
    assert said["tuned"] == said["merged"]
    assert made["settings"]["samples"] == asked
    assert all(one["tokens"] == 5 and not one["ended"] for one in made["models"]["dense"]["samples"])
    page_of_results = (tmp_path / "run/eval/results.md").read_text()
    for answer in (page_of_results, shown):
        assert "    2. A | list ⏎ of *lines*\n" in answer
        assert answer.count("dense:") == 2
    table = collect([tmp_path / "run"])
    assert f'<h3 class="prompt">{PROMPTS[0]}</h3>' in page.render(table)
    assert "A \\| list ⏎ of \\*lines\\*" in text.markdown(table)


def test_a_handful_of_prompts_by_default_and_only_what_models_can_take(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = without_template(make_model(tmp_path / "model"))

    def refused(**changes: Any) -> str:
        config = write_config(model=str(model), eval__models=["dense"], eval__perplexity=..., **changes)
        return lors("eval", config, "--dry-run", status=2).stderr

    few = write_config(eval__models=["dense"], eval__samples={}, eval__perplexity=...)
    assert "samples: 5 prompts, answers of at most 64 tokens" in lors("eval", few, "--dry-run").stdout
    assert len(SAMPLES) == 5
    assert "256 tokens, the positions of dense" in refused(eval__samples={"prompts": ["long " * 300]})
    assert "prompts" in refused(eval__samples={"prompts": []})
    assert "prompts" in refused(eval__samples={"prompts": [" \n"]})
    assert "dense, which has none" in refused(eval__samples={}, eval__system="Be brief.")
    assert "chat_template" in refused(eval__samples={}, eval__chat_template=True)
    (model / "chat_template.jinja").write_text("{{ raise_exception('no turns') }}")
    assert "prompt 1, for dense" in refused(eval__samples={"prompts": ["a"]})
    assert "dense, its chat template does not take the turns: no turns" in refused(
        eval__samples={"prompts": ["a"]}, eval__system="Be."
    )


@pytest.mark.parametrize("first", ["{{ raise_exception('no system') }}", ""], ids=["refuses", "leaves out"])
def test_a_system_turn_that_a_template_does_not_have_is_refused(
    lors: Lors, write_config: WriteConfig, task_dir: Path, make_model: Callable[..., Path], tmp_path: Path, first: str
) -> None:
    """lm-eval would leave it out where the template refuses it, and say so in its log alone."""
    model = make_model(tmp_path / "model")
    turn = f"{{% if m['role'] == 'system' %}}{first}{{% else %}}<u>{{{{ m['content'] }}}}<a>{{% endif %}}"
    (model / "chat_template.jinja").write_text(f"{{% for m in messages %}}{turn}{{% endfor %}}")
    asked = {"eval__models": ["dense"], "eval__perplexity": ..., "eval__system": "Be brief.", "model": str(model)}
    tasks = {"eval__tasks": ["words"], "eval__task_dir": str(task_dir), "eval__chat_template": True}
    for what in (tasks, {"eval__samples": {"prompts": ["a"]}}):
        said = lors("eval", write_config(**asked, **what), "--dry-run", status=2).stderr
        assert said.count("eval.system") == 2  # the key, and the remedy
        assert "dense, whose template refuses it or leaves it out" in said


def test_a_quantised_model_answers_as_its_numbers_do(
    lors: Lors, write_config: WriteConfig, pruned: Path, tmp_path: Path
) -> None:
    grid = Grid(4, 16, symmetric=False)
    codes, numbers = quantized.write(pruned, tmp_path / "codes", grid), tmp_path / "numbers"
    shutil.copytree(pruned, numbers)
    stored, tensors = load_file(codes / "model.safetensors"), load_file(numbers / "model.safetensors")
    for linear in (name.removesuffix(".weight") for name in tensors.keys() - stored.keys()):
        parts = {key.rpartition(".")[2]: one for key, one in stored.items() if key.startswith(f"{linear}.")}
        tensors[f"{linear}.weight"] = from_tensors(parts, grid).weight()
    save_file(tensors, numbers / "model.safetensors", metadata={"format": "pt"})
    asked = {"prompts": PROMPTS[:1], "max_new_tokens": 5}
    lors("eval", write_config(eval__models=[str(codes)], eval__samples=asked, eval__perplexity=...))
    (said,) = results(tmp_path)["models"][str(codes)]["samples"]
    assert said["text"] == greedy(numbers, PROMPTS[0], 5)


def test_a_chat_template_gives_the_numbers_of_lm_eval(
    lors: Lors,
    write_config: WriteConfig,
    task_dir: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = without_template(make_model(tmp_path / "model"))
    shared = {
        "model": str(model),
        "eval__models": ["dense"],
        "eval__perplexity": ...,
        "eval__tasks": ["words"],
        "eval__task_dir": str(task_dir),
    }
    asked = {"eval__chat_template": True, "eval__system": "Be brief."}
    refused = lors("eval", write_config(**shared, **asked), status=2).stderr
    assert "eval.chat_template" in refused
    assert "dense, which has none" in refused
    assert "chat_template: true" in lors("eval", write_config(**shared, eval__system="Be brief."), status=2).stderr
    (model / "chat_template.jinja").write_text(TEMPLATE)
    lors("eval", write_config(**shared, **asked, eval__samples={"prompts": ["A list"], "max_new_tokens": 4}))
    found = results(tmp_path)
    assert found["settings"]["chat_template"] is True
    assert found["settings"]["system"] == "Be brief."
    (said,) = found["models"]["dense"]["samples"]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    monkeypatch.chdir(task_dir)  # where lm-eval looks for the rows
    theirs = simple_evaluate(
        model=HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=8),
        tasks=["words"],
        task_manager=TaskManager(include_path=str(task_dir), include_defaults=False),
        apply_chat_template=True,
        system_instruction="Be brief.",
    )
    without_template(model)
    assert said["text"] == greedy(model, "<system>Be brief.<user>A list<a>", 4)
    hashes = [one["prompt_hash"] for one in theirs["samples"]["words"]]
    assert found["models"]["dense"]["tasks"]["words"]["acc"] == theirs["results"]["words"]["acc,none"]
    from lors_cli.evaluation import items

    kept = items.read(tmp_path / "run/eval" / found["models"]["dense"]["items"] / "words.jsonl.gz")
    assert [one["prompt"] for one in kept] == [one[:16] for one in hashes]
    columns = {
        heading.name: dict(heading.key.column.settings)
        for heading in collect([tmp_path / "run"]).headings
        if heading.key.column
    }
    assert columns["words"]["system"] == "Be brief."

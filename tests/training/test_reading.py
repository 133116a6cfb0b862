from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.train import Train
from lors_cli.data.example import Example
from lors_cli.data.samples import Held
from lors_cli.training import steps

Lors = Callable[..., Result]
Jsonl = Callable[..., Path]
WriteConfig = Callable[..., Path]
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], "source": "web"}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dry_run_shows_what_will_be_learnt(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, pruned: Path, streaming: bool
) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 90}, {"role": "assistant", "content": "No."}]}
    data = {"path": str(jsonl([ROW, ROW, ROW, long])), "streaming": streaming}
    config = write_config(train__input=str(pruned), train__dataset=data, train__sequence_length=64)
    shown = lors("train", config, "--dry-run").stdout
    for number in (1, 2, 3):
        assert f"row {number}: <|user|>Hi<|end|><|assistant|>⟦Yes?<|end|>⟧\n" in shown
    assert "row 4" not in shown
    assert "dataset: columns that are not used: source" in shown
    if not streaming:  # of which not all rows are read yet
        assert "dataset: 1 rows are longer than sequence_length" in shown
        assert "dataset: 1 rows have nothing to learn within sequence_length" in shown


def test_a_training_says_the_same_in_its_log(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, pruned: Path, tmp_path: Path
) -> None:
    config = write_config(train__input=str(pruned), train__dataset=str(jsonl([ROW] * 4)), train__max_steps=1)
    said = lors("train", config).stderr
    assert "⟦Yes?<|end|>⟧" in said
    assert "columns that are not used: source" in said
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "⟦Yes?<|end|>⟧" in logs


def test_an_end_token_that_the_tokenizer_does_not_have(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    settings = model / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "<|end|>"', '"eos_token": null'))
    config = write_config(train__input=str(model), train__dataset=str(jsonl([ROW])), train__append_eos=True)
    said = lors("train", config, "train.method=lora", "--dry-run", status=2).stderr
    for word in ("train.append_eos", "end token", "or remove append_eos"):
        assert word in said
    assert "eos_token_id" in (model / "config.json").read_text()
    lors("train", config, "train.method=lora", "train.append_eos=auto", "--dry-run")


def test_fields_to_leave_out_are_named_by_the_error(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, pruned: Path
) -> None:
    row = {**ROW, "lore": "Once upon a time."}
    config = write_config(train__input=str(pruned), train__dataset=str(jsonl([row] * 4)))
    said = lors("train", config, "--dry-run", status=2).stderr
    assert "row 1, field lore" in said
    assert "train.ignore_fields: [lore]" in said
    lors("train", config, "train.ignore_fields=[lore]", "--dry-run")


@pytest.mark.parametrize("most", [1, 19, 20, 21, 59, 60, 61, 100, 1234])
@pytest.mark.parametrize("per_step", [1, 3, 4])
def test_tokens_tell_the_steps_as_counting_does(most: int, per_step: int) -> None:
    examples: list[Example] = [{"input_ids": [1] * n, "labels": [1] * n} for n in (2, 3, 5, 9, 1)]
    samples = Held(examples, seed=3)
    seen = taken = 0
    for sample in samples.starting_at(0):
        seen, taken = seen + len(sample["input_ids"]), taken + 1
        if seen >= most and taken % per_step == 0:
            break
    text = {"method": "lors", "dataset": "a", "max_tokens": most, "repeat": True, "batch_size": per_step}
    assert steps.count(Train.model_validate(text), samples) == taken // per_step
    huge = Train.model_validate({**text, "max_tokens": 10**15})  # counted one by one, it never ended
    assert steps.count(huge, samples) == pytest.approx(10**15 / 20 * 5 / per_step, rel=1e-9)

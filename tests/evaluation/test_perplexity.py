"""Perplexity, against its definition."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.data import builtin, prompts
from lors_cli.errors import UnmeasurableError
from lors_cli.evaluation import items
from lors_cli.evaluation.perplexity import of_losses
from tests.evaluation.tasks import results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@torch.no_grad()
def test_perplexity_equals_the_definition(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    lors("eval", write_config(eval__models=["dense"]))
    ids = AutoTokenizer.from_pretrained(dense)("\n\n".join(builtin.texts("train")), add_special_tokens=False)[
        "input_ids"
    ]
    windows = torch.tensor(ids[: 4 * 32]).view(4, 32)
    model = AutoModelForCausalLM.from_pretrained(dense)
    losses = [float(model(window[None], labels=window[None]).loss) for window in windows]
    perplexity = results(tmp_path)["models"]["dense"]["perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    assert perplexity["tokens"] == 4 * 31
    assert results(tmp_path)["settings"]["perplexity"]["bos"] is False


def test_a_model_of_nan_ends_with_a_message(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model(tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = lors("eval", write_config(model=str(model), eval__models=["dense"]), status=1)
    assert "NaN" in result.stderr
    assert not (tmp_path / "run/eval").exists()


def test_of_losses_by_hand() -> None:
    # 3 predicted tokens a window: mean losses 1 and 2
    assert of_losses([3.0, 6.0], [3, 3]) == {
        "value": pytest.approx(math.exp(1.5)),
        "tokens": 6,
        "stderr": pytest.approx(math.exp(1.5) * 0.5),  # (2 - 1) / sqrt(2) by sqrt(2) windows
    }
    assert of_losses([3.0], [3]) == {"value": pytest.approx(math.e), "tokens": 3}  # one window has no error
    assert math.isfinite(of_losses([2125.0, 2126.0], [3, 3])["value"])
    with pytest.raises(UnmeasurableError, match="3333 nats per token"):
        of_losses([1e4, 1e4], [3, 3])


def test_of_losses_of_samples_of_different_lengths() -> None:
    # every token weighs alike: 12 nats over 6 tokens; the error is that of a ratio, by hand
    found = of_losses([2.0, 10.0], [2, 4])
    assert found["value"] == pytest.approx(math.exp(2))
    assert found["tokens"] == 6
    residuals = (2.0 - 2 * 2.0, 10.0 - 4 * 2.0)
    variance = sum(one**2 for one in residuals) / (2 - 1)
    assert found["stderr"] == pytest.approx(math.exp(2) * math.sqrt(variance * 2) / 6)


ALPACA = [
    {"instruction": f"Say {n}.", "input": "twice " * (n % 3), "output": " ".join([str(n)] * (n % 6 + 1))}
    for n in range(1, 31)
]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": "No. " * n},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "I counted."},
        ]
    }
    for n in range(1, 9)
]


def independent(model: Any, rows: list[list[str]], tokenizer: Any, length: int, *, whole: bool) -> tuple[float, int]:
    """Mean loss and count by transformers alone. Of the pieces of a row every second one is an answer and counts."""
    total, count = 0.0, 0
    for pieces in rows:
        ids: list[int] = []
        labels: list[int] = []
        for place, piece in enumerate(pieces):
            part = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += part
            labels += part if place % 2 or whole else [-100] * len(part)
        counted = sum(label != -100 for label in labels[1:length])
        if counted:
            loss = model(input_ids=torch.tensor([ids[:length]]), labels=torch.tensor([labels[:length]])).loss
            total, count = total + float(loss) * counted, count + counted
    return total / count, count


def alpaca(row: dict[str, Any]) -> list[str]:
    context = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    first = prompts.WITH_INPUT if row["input"] else prompts.WITHOUT_INPUT
    return [f"{first}\n\n### Instruction:\n{row['instruction']}{context}\n\n### Response:\n", row["output"] + "<|end|>"]


def chat(row: dict[str, Any]) -> list[str]:
    first, second, third, fourth = (turn["content"] for turn in row["messages"])
    before = "<|end|><|assistant|>"
    return [f"<|user|>{first}{before}", f"{second}<|end|>", f"<|user|>{third}{before}", f"{fourth}<|end|>"]


@pytest.mark.parametrize("prompt_tokens", [False, True])
def test_rows_are_measured_as_transformers_would(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], dense: Path, tmp_path: Path, prompt_tokens: bool
) -> None:
    several: list[dict[str, Any]] = [
        {
            "name": "alpaca",
            "dataset": {"path": str(jsonl(ALPACA, "a.jsonl")), "format": "alpaca"},
            "sequence_length": 160,
        },
        {
            "name": "In.Domain",
            "dataset": {"path": str(jsonl(CHAT, "c.jsonl")), "format": "chat"},
            "sequence_length": 24,
        },
    ]
    lengths: dict[str, int] = {one["name"]: one["sequence_length"] for one in several}
    several = [{**one, "prompt_tokens": prompt_tokens} for one in several]
    text = {"name": "text", "dataset": "python-topics", "sequence_length": 32, "samples": 4}
    lors("eval", write_config(eval__models=["dense"], eval__perplexity=[*several, text]))
    found = results(tmp_path)["models"]["dense"]
    assert "perplexity" not in found
    model, tokenizer = AutoModelForCausalLM.from_pretrained(dense), AutoTokenizer.from_pretrained(dense)
    for name, rows, pieces in (("alpaca", ALPACA, alpaca), ("In.Domain", CHAT, chat)):
        mean, count = independent(model, list(map(pieces, rows)), tokenizer, lengths[name], whole=prompt_tokens)
        measured = found["perplexities"][name]
        assert measured["tokens"] == count
        assert measured["value"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert measured["rows"] == len(rows)
        lines = items.read(tmp_path / f"run/eval/items/dense/perplexity~{name}.jsonl.gz")
        assert sum(line["tokens"] for line in lines) == count
    assert found["perplexities"]["In.Domain"]["truncated"] > 0
    table = (tmp_path / "run/eval/results.md").read_text()
    how = "with" if prompt_tokens else "without"
    assert f"c.jsonl, 8 rows (chat) of at most 24 tokens {how} their prompts" in table
    assert "| perplexity alpaca " in table
    recorded = results(tmp_path)["settings"]["perplexity"]
    assert [one["prompt_tokens"] for one in recorded] == [prompt_tokens, prompt_tokens, False]
    # the same text by itself has the same number, in its old place
    lors("eval", write_config(eval__models=["dense"], output_dir=str(tmp_path / "alone")))
    alone = json.loads((tmp_path / "alone/eval/results.json").read_text())["models"]["dense"]["perplexity"]
    assert found["perplexities"]["text"] == alone


def test_rows_are_drawn_by_a_seed_of_their_own(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {"dataset": {"path": str(jsonl(ALPACA)), "format": "alpaca"}, "sequence_length": 256, "samples": 7}
    drawn: dict[str, list[int]] = {}
    for name, more, seed in (
        ("first", {}, 0),
        ("one", {"sampling": "random"}, 0),
        ("same", {"sampling": "random"}, 3),
        ("other", {"sampling": "random", "sampling_seed": 1}, 0),
        ("all", {"sampling": "random", "samples": 99}, 0),
    ):
        config = write_config(
            eval__models=["dense"], eval__perplexity={**asked, **more}, seed=seed, output_dir=str(tmp_path / name)
        )
        lors("eval", config)
        drawn[name] = [line["row"] for line in items.read(tmp_path / name / "eval/items/dense/perplexity.jsonl.gz")]
    assert drawn["first"] == list(range(7))
    assert drawn["one"] == drawn["same"] == sorted(set(drawn["one"]))
    assert len(drawn["one"]) == 7
    assert drawn["one"] not in (drawn["first"], drawn["other"])
    assert drawn["all"] == list(range(30))


def test_rows_that_cannot_be_measured_are_refused_before_the_work(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path]
) -> None:
    def refused(*more: str, **asked: Any) -> str:
        return lors("eval", write_config(eval__models=["dense"], eval__perplexity=asked), *more, status=2).stderr

    broken = {"path": str(jsonl([*ALPACA, {"instruction": "Go."}])), "format": "alpaca"}
    said = refused(dataset=broken)
    assert "eval.perplexity.dataset" in said
    assert "row 31" in said
    assert "'output'" in said
    lore = {"path": str(jsonl([{**ALPACA[0], "lore": "Once upon a time."}])), "format": "alpaca"}
    said = refused(dataset=lore)
    assert "eval.perplexity.ignore_fields: [lore]" in said
    lors("eval", write_config(eval__models=["dense"], eval__perplexity={"dataset": lore, "ignore_fields": ["lore"]}))
    fine = {"path": str(jsonl(ALPACA, "fine.jsonl")), "format": "alpaca"}
    assert "raise eval.perplexity.sequence_length" in refused(dataset=fine, sequence_length=4)
    assert "samples with sampling: random" in refused(dataset=fine, sampling="random")
    assert "no prompt_tokens" in refused(dataset="python-topics", prompt_tokens=True)

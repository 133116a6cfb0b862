import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from typer.testing import Result

from lors_cli.benchmark import decode, decode_subject
from lors_cli.kernels import packed as kernel
from lors_cli.models import linears, memory
from lors_cli.sparsity.pattern import Pattern

Lors = Callable[..., Result]
DENSE = ["own dense"] * (kernel.library() is not None)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "ROTATED", 1 << 16)
    monkeypatch.setattr(decode, "TOKENS", 2)


def test_a_packed_model(lors: Lors, pruned: Path, tmp_path: Path) -> None:
    lors("pack", pruned, packed := tmp_path / "packed")
    asked = [
        "--decode",
        packed,
        "--batch-sizes",
        "1,9",
        "--sequence-lengths",
        "3,5",
        "--rounds",
        2,
        "--dtype",
        "float32",
    ]
    results = json.loads(lors("bench", *asked, "--output-dir", tmp_path / "out", "--json").stdout)
    assert results == json.loads((tmp_path / "out/decode.json").read_text())
    assert {cell["linear"] for cell in results["linears"]} == {"32 x 32", "16 x 32", "64 x 32", "32 x 64"}
    assert {cell["batch_size"] for cell in results["linears"]} == {1, 9}
    for cell in results["linears"]:
        rows, columns = map(int, cell["linear"].split(" x "))
        assert list(cell["ways"]) == ["torch", *DENSE, "2:4", "bitmask"]
        assert cell["ways"]["torch"]["bytes"] == 4 * rows * columns
        assert cell["ways"]["2:4"]["bytes"] == 2 * rows * columns + rows * columns // 8
        assert all(way["ms"] > 0 for way in cell["ways"].values())
    assert [(c["batch_size"], c["prompt_length"]) for c in results["tokens"]] == [(1, 3), (1, 5), (9, 3), (9, 5)]
    for cell in results["tokens"]:
        assert list(cell["ways"]) == ["torch", *DENSE, "packed", "no linears"]
        assert cell["ways"]["no linears"]["bytes"] < cell["ways"]["packed"]["bytes"] < cell["ways"]["torch"]["bytes"]
    assert (tmp_path / "out/decode.png").stat().st_size > 1000
    text = (tmp_path / "out/decode.md").read_text()
    assert "share of a token outside the linears" in text
    assert text.count("limit by bytes") == len(results["linears"]) + len(results["tokens"])


def test_the_ways_are_one_model(pruned: Path) -> None:
    _, make = decode_subject.subject(str(pruned), None, torch.float32)
    models = decode_subject.variants(make())
    ids = torch.arange(12).view(2, 6)
    for way in (*DENSE, "packed"):
        torch.testing.assert_close(models[way](ids).logits, models["torch"](ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.equal(models["no linears"](ids).logits, models["torch"](ids).logits)


def test_a_shape(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.from_pretrained(dense)
    config.save_pretrained(tmp_path)
    weights, make = decode_subject.subject(str(tmp_path), Pattern.parse("0.75"), torch.bfloat16)
    assert all(float((weight == 0).float().mean()) == pytest.approx(0.75) for weight in weights.values())
    assert len(dict(linears.all_linears(make()))) == 14
    monkeypatch.setattr(memory, "free_host", lambda: 1000)
    options = decode.Options(str(tmp_path / "config.json"), rounds=1, output_dir=str(tmp_path / "out"))
    results = decode.decode(options)
    assert results["tokens"] == []
    assert "are free" in results["not_measured"][0]["reason"]
    results = decode.decode(replace(options, time_limit=0))
    assert len(results["not_measured"]) == 5
    assert "time limit" in (tmp_path / "out/decode.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "4"], "leave --ranks out"),
        (["--predict"], "leave --predict out"),
        (["--device", "cuda"], "cpu with --decode"),
        (["--dtype", "float16"], "--dtype"),
        (["--batch-sizes", "0"], "--batch-sizes"),
        (["--sparsity", "0.5"], "the model has its own zeros"),
        (["--time-limit", "nan"], "--time-limit"),
    ],
)
def test_wrong_requests(lors: Lors, pruned: Path, arguments: list[str], words: str) -> None:
    assert words in lors("bench", "--decode", pruned, *arguments, status=2).stderr


def test_wrong_subjects(lors: Lors, dense: Path, tmp_path: Path) -> None:
    assert "a model with zeros" in lors("bench", "--decode", dense, status=2).stderr
    assert "--decode" in lors("bench", "--decode", tmp_path / "absent", status=2).stderr
    assert "--sparsity" in lors("bench", "--decode", "smollm2-135m", "--sparsity", "5:7", status=2).stderr

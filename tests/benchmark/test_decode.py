import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from typer.testing import Result

from lors_cli.adapters.dense_linear import DenseLinear
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.benchmark import decode, decode_subject
from lors_cli.benchmark.writer import Writer
from lors_cli.kernels import packed as kernel
from lors_cli.models import linears, memory
from lors_cli.quantization.grid import Grid
from lors_cli.sparsity.pattern import Pattern
from lors_cli.tools.pack import pack
from tests import quantized

Lors = Callable[..., Result]
CPU = torch.device("cpu")
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


def packed_linears(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def test_the_ways_are_one_model(pruned: Path, tmp_path: Path) -> None:
    coded = quantized.write(pruned, tmp_path / "coded", Grid(8, 32))
    pack(coded, tmp_path / "packed")
    for path, layouts in ((pruned, []), (coded, ["int8 2:4"]), (tmp_path / "packed", ["int8 2:4"])):
        subject = decode_subject.subject(str(path), None, torch.float32, CPU)
        assert [list(ways) for _, ways in subject.linears.values()] == 4 * [layouts]
        models = decode_subject.variants(subject.make(), subject.coded)
        heads = {way: type(model.get_output_embeddings()) for way, model in models.items()}
        assert heads.pop("torch") is nn.Linear
        assert set(heads.values()) == {DenseLinear}
        ids = torch.arange(12).view(2, 6)
        for way in (*DENSE, "packed"):
            torch.testing.assert_close(models[way](ids).logits, models["torch"](ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.equal(models["no linears"](ids).logits, models["torch"](ids).logits)
        assert all((one.scale is not None) == bool(layouts) for one in packed_linears(models["packed"]))


def test_the_cache_of_a_gpu_writes_the_same_tokens(pruned: Path) -> None:
    model = decode_subject.subject(str(pruned), None, torch.float32, CPU).make()
    growing, fixed = (Writer(model, 2, 5, tokens=4, static=static) for static in (False, True))
    for writer in (growing, fixed, fixed):  # and again from the start
        assert len(writer.run()) == 5
        assert not writer.captured
        assert torch.equal(writer.token, written(model, growing.prompt))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_graphs_on_a_gpu_write_the_same_tokens(pruned: Path) -> None:
    subject = decode_subject.subject(str(pruned), None, torch.float32, torch.device("cuda"))
    with torch.inference_mode():
        models = decode_subject.variants(subject.make(), subject.coded)
        for way in ("torch", "packed"):
            writer = Writer(models[way], 2, 5, tokens=4)
            assert writer.captured
            for _ in range(2):
                writer.run()
                assert torch.equal(writer.token, written(models["torch"], writer.prompt))


def written(model: Any, prompt: Tensor) -> Tensor:
    """The fifth token after it."""
    ids = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    return cast("Tensor", ids[:, -1:])


def test_a_shape(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.from_pretrained(dense)
    config.save_pretrained(tmp_path)
    subject = decode_subject.subject(str(tmp_path), Pattern.parse("0.75"), torch.bfloat16, CPU, bits=3)
    for weight, ways in subject.linears.values():
        assert float((weight == 0).float().mean()) == pytest.approx(0.75)
        assert list(ways) == ["int3 bitmask"]
        assert ways["int3 bitmask"].bytes < weight.nbytes / 4
    base = subject.make()
    assert len(dict(linears.all_linears(base))) == 14
    assert len(packed_linears(decode_subject.variants(base, subject.coded)["packed"])) == 14
    monkeypatch.setattr(memory, "free_host", lambda: 1000)
    options = decode.Options(str(tmp_path / "config.json"), rounds=1, bits=4, output_dir=str(tmp_path / "out"))
    results = decode.decode(options)
    assert results["tokens"] == []
    assert "are free" in results["not_measured"][0]["reason"]
    assert {"torch", "2:4", "bitmask", "int4 2:4", "int4 bitmask"} <= results["linears"][0]["ways"].keys()
    results = decode.decode(replace(options, time_limit=0))
    assert len(results["not_measured"]) == 5
    assert "time limit" in (tmp_path / "out/decode.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "4"], "leave --ranks out"),
        (["--predict"], "leave --predict out"),
        (["--device", "cuda:99"], "a device that is present here"),
        (["--device", "meta"], "a device that is present here"),
        (["--dtype", "float16"], "--dtype"),
        (["--batch-sizes", "0"], "--batch-sizes"),
        (["--sparsity", "0.5"], "the model has its own zeros"),
        (["--bits", "4"], "the model has its own weights"),
        (["--bits", "9"], "--bits"),
        (["--time-limit", "nan"], "--time-limit"),
    ],
)
def test_wrong_requests(lors: Lors, pruned: Path, arguments: list[str], words: str) -> None:
    assert words in lors("bench", "--decode", pruned, *arguments, status=2).stderr


def test_wrong_subjects(lors: Lors, dense: Path, tmp_path: Path) -> None:
    assert "a model with zeros" in lors("bench", "--decode", dense, status=2).stderr
    assert "--decode" in lors("bench", "--decode", tmp_path / "absent", status=2).stderr
    assert "--sparsity" in lors("bench", "--decode", "smollm2-135m", "--sparsity", "5:7", status=2).stderr

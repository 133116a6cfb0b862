"""`lors bench`, the whole command on a pico model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.benchmark import cells, measure, roofline
from lors_cli.benchmark.roofline import KNOWN
from lors_cli.benchmark.subject import Subject
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.models import memory

Lors = Callable[..., Result]
R, N = 8, 24  # rank and tokens of a measurement


@pytest.fixture
def pico(dense: Path) -> str:
    return str(dense)


@pytest.fixture(autouse=True)
def _quick_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MOST_ROUNDS", 2)
    monkeypatch.setattr(roofline, "calibrate", lambda *_: KNOWN["h100"])


@pytest.fixture
def bench(lors: Lors, pico: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*options: str, shape: str = pico) -> dict[str, Any]:
        place = ["--shape", shape, "--sequence-lengths", str(N), "--ranks", str(R), "--rounds", "1"]
        result = lors("bench", *place, "--output-dir", tmp_path / "bench", "--json", *options)
        results: dict[str, Any] = json.loads(result.stdout)
        return results

    return run


def test_one_run_has_everything_and_the_same_command_goes_on(
    bench: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["frozen", "lora", "lors", "lors-cached", "spp"]
    options = ("--scopes", "linear,block", "--batch-sizes", "1,2", "--ranks", "8,4,6", "--methods", ",".join(methods))
    calls, measured = [0], cells.measured

    def interrupted(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        measured(*args, **kwargs)

    monkeypatch.setattr(cells, "measured", interrupted)
    with pytest.raises(AssertionError, match="exit 130"):
        bench(*options)
    results = bench(*options)
    assert calls[0] == 3 + 6  # two of the eight cells were there
    assert [(c["scope"], c["rank"], c["batch_size"]) for c in results["cells"]] == [
        (scope, rank, batch) for scope in ("linear", "block") for rank, batch in ((8, 1), (4, 1), (6, 1), (8, 2))
    ]
    for cell in results["cells"]:
        assert list(cell["methods"]) == methods
        for name, figures in cell["methods"].items():
            if cell["rank"] == 6 and VARIANTS[name].method == "spp":
                assert figures["skipped"].startswith("rank 6 does not divide")
                continue
            assert len(figures["rounds_ms"]) == cells.MOST_ROUNDS
            assert figures["peak_bytes"] > 0
            assert figures["predicted_ms"] > 0
    files = {path.name for path in (tmp_path / "bench").iterdir()}
    pictures = {f"{scope}_{what}.png" for scope in ("linear", "block") for what in ("methods", "rank", "batch_size")}
    assert files >= pictures | {"bench.json", "bench.md"}
    assert all((tmp_path / "bench" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    assert bench(*options)["cells"] == results["cells"]
    assert calls[0] == 9


def test_other_methods_are_measured_beside_the_earlier_ones(bench: Callable[..., dict[str, Any]]) -> None:
    bench("--scopes", "linear", "--methods", "frozen,lora")
    (cell,) = bench("--scopes", "linear", "--methods", "lors")["cells"]
    assert list(cell["methods"]) == ["frozen", "lora", "lors"]
    assert bench("--scopes", "linear", "--methods", "lora")["cells"] == [cell]


def test_other_settings_are_not_mixed(
    lors: Lors, bench: Callable[..., dict[str, Any]], pico: str, tmp_path: Path
) -> None:
    bench("--scopes", "linear", "--methods", "lors,frozen")
    again = ["bench", "--shape", pico, "--output-dir", tmp_path / "bench", "--scopes", "linear", "--rounds", "1"]
    refused = lors(*again, "--sparsity", "0.5", status=2).stderr
    assert "sparsity '0.5'" in refused
    assert "'2:4'" in refused
    lors(*again, "--sparsity", "0.5", "--methods", "lors", "--force")
    (tmp_path / "bench/bench.json").write_text("{")
    assert "damaged" in lors(*again, status=2).stderr


def test_what_does_not_fit_is_skipped_and_said(
    bench: Callable[..., dict[str, Any]], lors: Lors, pico: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_host", lambda: 30_000)
    results = bench("--scopes", "linear,model", "--methods", "frozen,lors")
    assert [cell["scope"] for cell in results["cells"]] == ["linear"]
    (left,) = results["not_measured"]
    assert left["scope"] == "model"
    assert "GB" in left["reason"]
    monkeypatch.undo()
    peak = measure.peak_bytes

    def out_of_memory(subject: Subject, *args: Any) -> int:
        if subject.variant.label == "LoRS":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return peak(subject, *args)

    monkeypatch.setattr(measure, "peak_bytes", out_of_memory)
    results = bench("--scopes", "linear", "--methods", "frozen,lors,lora", "--force")
    (cell,) = results["cells"]
    assert cell["methods"]["lors"]["skipped"] == "out of memory"
    assert "ms" in cell["methods"]["frozen"]
    assert "ms" in cell["methods"]["lora"]
    assert "ms" not in cell["methods"]["lors"]
    shown = lors("bench", "--shape", pico, "--sequence-lengths", N, "--ranks", R, "--rounds", 1, "--scopes", "linear",
                 "--methods", "frozen,lors,lora", "--output-dir", tmp_path / "bench").stdout  # fmt: skip
    assert "out of memory" in shown


def test_a_time_limit_ends_it_with_what_was_measured(bench: Callable[..., dict[str, Any]]) -> None:
    results = bench("--scopes", "linear,block", "--time-limit", "0")
    assert results["cells"] == []
    assert all("of --time-limit" in one["reason"] for one in results["not_measured"])
    results = bench("--scopes", "linear", "--time-limit", "60", "--methods", "frozen")
    assert len(results["cells"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "llama-3-9b"], ["--shape", "llama-3-8b"]),
        (["--scopes", "blok"], ["--scopes", "'block'"]),
        (["--methods", "lora,sp"], ["--methods", "spp"]),
        (["--ranks", "16,a"], ["--ranks", "whole numbers"]),
        (["--ranks", "10000"], ["--ranks", "at most"]),
        (["--rounds", "0"], ["--rounds", "at least 1"]),
        (["--time-limit", "nan"], ["--time-limit", "at least 0"]),
        (["--sparsity", "4:2"], ["--sparsity", "a fraction of zeros"]),
        (["--sparsity", "3:7"], ["--sparsity", "M divides"]),
        (["--dtype", "int8"], ["--dtype", "float32"]),
        (["--device", "tpu"], ["device"]),
        (["--device", "meta"], ["device", "cpu, cuda"]),
        (["--predict", "--hardware", "z80"], ["--hardware", "h100"]),
    ],
)
def test_bad_options(lors: Lors, tmp_path: Path, options: list[str], words: list[str]) -> None:
    result = lors("bench", *options, "--output-dir", tmp_path / "bench", status=2)
    for word in words:
        assert word in result.stderr
    assert not list((tmp_path / "bench").glob("*.json"))


def test_a_config_that_is_not_of_llamas_kind(lors: Lors, tmp_path: Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 8}
    for text in (
        json.dumps(experts),
        "{",
        "[]",
        '{"model_type": "bert"',
        '{"model_type": "gpt2"}',
        '{"hidden_size": 3}',
    ):
        (tmp_path / "config.json").write_text(text)
        assert "config.json" in lors("bench", "--shape", tmp_path / "config.json", "--predict", status=2).stderr


def test_prediction_needs_nothing(lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = json.loads(lors("bench", "--predict", "--shape", "llama-3-8b", "--json").stdout)
    assert [cell["sequence_length"] for cell in results["cells"]] == [512, 1024, 2048]
    shown = lors("bench", "--predict", "--shape", "llama-3-8b", "--output-dir", tmp_path / "out").stdout
    assert "x frozen" in shown
    assert json.loads((tmp_path / "out/predicted.json").read_text())["cells"] == results["cells"]
    assert (tmp_path / "out/predicted.md").read_text().strip() in shown
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing else is written"

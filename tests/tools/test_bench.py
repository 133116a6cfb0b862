import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from lors_cli.benchmark import cells, measure, roofline
from lors_cli.benchmark.roofline import KNOWN, Setting, Shape
from lors_cli.benchmark.subject import SHAPES, Subject, build, inputs_for, names, read_shape
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.models import memory
from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern

Lors = Callable[..., Result]
CPU, HALF = torch.device("cpu"), Pattern.parse("2:4")
H, W, R, N = 32, 64, 8, 24  # hidden and intermediate size of the pico model, rank and tokens of a measurement


@pytest.fixture
def pico(dense: Path) -> str:
    return str(dense)


@pytest.fixture
def bench(lors: Lors, pico: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*options: str, shape: str = pico) -> dict[str, Any]:
        place = ["--shape", shape, "--sequence-lengths", str(N), "--ranks", str(R), "--rounds", "1"]
        result = lors("bench", *place, "--output-dir", tmp_path / "bench", "--json", *options)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_of_a_linear_are_those_of_the_formulas(pico: str, name: str) -> None:
    config, setting = read_shape(pico), Setting("linear", N, 1, R, 4)
    base = build(config, "linear", torch.float32, CPU, HALF)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    subject = Subject(base, VARIANTS[name], setting)
    found = measure.counts(subject, inputs, target)
    gemm, merge, factors = H * W * N, R * H * W, R * N * (H + W)
    wanted = {
        "frozen": (gemm, gemm, 0),
        "lora": (gemm + factors, gemm + 2 * factors, 4 * R * N),
        "lors": (gemm + merge, gemm + merge + 2 * factors, 0),
        "lors-cached": (gemm + merge / 8, gemm + 2 * factors, 0),
        "sqft": (gemm + merge, 2 * (gemm + merge), 5 * H * W),
        "sqft-gc": (gemm + merge, 2 * gemm + 3 * merge, 0),
        "sqft-gc-reentrant": (gemm + merge, 3 * (gemm + merge), 0),
        "spp": (2 * gemm, 3 * gemm, 12 * H * W),
        "spp-gc": (2 * gemm, 3 * gemm, 0),
        "spp-gc-reentrant": (2 * gemm, 4 * gemm, 0),
        "spp-columns": (2 * gemm, 2 * gemm, 4 * W * N),
        "spp-merged": (gemm, 2 * gemm, 0),
    }
    wanted["lors-packed"] = wanted["lors-listing"] = wanted["lors"]
    forward, backward, saved = wanted[name]
    assert found == {"forward_flops": 2 * forward, "backward_flops": 2 * backward, "saved_bytes": saved}
    # the roofline's products are the ones counted
    variant = VARIANTS[name]
    assert 2 * variant.forward.gemms * gemm <= found["forward_flops"] < 2 * (variant.forward.gemms + 1) * gemm
    assert measure.peak_bytes(subject, inputs, target) > 0
    assert measure.seconds(subject, inputs, target) > 0


@pytest.mark.parametrize("scope", ["block", "model"])
def test_weights_are_shared_sparse_and_untouched(pico: str, scope: str) -> None:
    base = build(read_shape(pico), scope, torch.float32, CPU, HALF)
    linears = names(base, scope)
    assert len(linears) == (7 if scope == "block" else 14)
    weights = {name: base.get_parameter(f"{name}.weight") for name in linears}
    assert all(mask.detect(weight) == "2:4" for weight in weights.values())
    assert not any(mask.negative_zeros(weight) for weight in weights.values())
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    setting = Setting(scope, N, 2, R, 4, checkpointing=True)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    outputs = []
    for name in ("lors", "lors-cached", "lors-packed", "lora"):
        subject = Subject(base, VARIANTS[name], setting)
        outputs.append(subject.forward(inputs, target))
        subject.run(inputs, target)
        if name != "lors-packed":
            own = subject.model.get_submodule(linears[0]).linear.weight
            assert own.data_ptr() == weights[linears[0]].data_ptr()
        assert all(t.grad is None for a in subject.adapters.values() for t in a.tensors().values())
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())
    assert all(output.isfinite().all() for output in outputs)


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
    found = bench(*options)
    assert calls[0] == 3 + 6  # two of the eight cells were there
    assert [(c["scope"], c["rank"], c["batch_size"]) for c in found["cells"]] == [
        (scope, rank, batch) for scope in ("linear", "block") for rank, batch in ((8, 1), (4, 1), (6, 1), (8, 2))
    ]
    for cell in found["cells"]:
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
    assert bench(*options)["cells"] == found["cells"]
    assert calls[0] == 9


def test_the_lower_bound_has_a_backward_in_a_model_too(pico: str) -> None:
    config = read_shape(pico)
    config.pad_token_id = 300
    base = build(config, "model", torch.float32, CPU, HALF)
    setting = Setting("model", N, 1, R, 4)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    found = measure.counts(Subject(base, VARIANTS["frozen"], setting), inputs, target)
    assert found["backward_flops"] == pytest.approx(found["forward_flops"], rel=0.3)  # attention has two more products
    tied = base.get_output_embeddings().weight  # type: ignore[operator]
    assert tied is base.get_input_embeddings().weight  # type: ignore[operator]


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
    found = bench("--scopes", "linear,model", "--methods", "frozen,lors")
    assert [cell["scope"] for cell in found["cells"]] == ["linear"]
    (left,) = found["not_measured"]
    assert left["scope"] == "model"
    assert "GB" in left["reason"]
    monkeypatch.undo()
    peak = measure.peak_bytes

    def out_of_memory(subject: Subject, *args: Any) -> int:
        if subject.variant.label == "LoRS":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return peak(subject, *args)

    monkeypatch.setattr(measure, "peak_bytes", out_of_memory)
    found = bench("--scopes", "linear", "--methods", "frozen,lors,lora", "--force")
    (cell,) = found["cells"]
    assert cell["methods"]["lors"]["skipped"] == "out of memory"
    assert "ms" in cell["methods"]["frozen"]
    assert "ms" in cell["methods"]["lora"]
    assert "ms" not in cell["methods"]["lors"]
    shown = lors("bench", "--shape", pico, "--sequence-lengths", N, "--ranks", R, "--rounds", 1, "--scopes", "linear",
                 "--methods", "frozen,lors,lora", "--output-dir", tmp_path / "bench").stdout  # fmt: skip
    assert "out of memory" in shown


def test_a_time_limit_ends_it_with_what_was_measured(bench: Callable[..., dict[str, Any]]) -> None:
    found = bench("--scopes", "linear,block", "--time-limit", "0")
    assert found["cells"] == []
    assert all("of --time-limit" in one["reason"] for one in found["not_measured"])
    found = bench("--scopes", "linear", "--time-limit", "60", "--methods", "frozen")
    assert len(found["cells"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "llama-3-9b"], ["--shape", "llama-3-8b"]),
        (["--scopes", "blok"], ["--scopes", "'block'"]),
        (["--methods", "lora,sp"], ["--methods", "spp"]),
        (["--ranks", "16,a"], ["--ranks", "whole numbers"]),
        (["--ranks", "10000"], ["--ranks", "at most"]),
        (["--rounds", "0"], ["--rounds", "at least 1"]),
        (["--sparsity", "4:2"], ["--sparsity", "a fraction of zeros"]),
        (["--sparsity", "3:7"], ["--sparsity", "M divides"]),
        (["--dtype", "int8"], ["--dtype", "float32"]),
        (["--device", "tpu"], ["device"]),
        (["--device", "meta"], ["--device", "cpu or cuda"]),
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
    found = json.loads(lors("bench", "--predict", "--shape", "llama-3-8b", "--json").stdout)
    assert [cell["sequence_length"] for cell in found["cells"]] == [512, 1024, 2048]
    assert "x frozen" in lors("bench", "--predict", "--shape", "llama-3-8b").stdout
    assert not list(tmp_path.iterdir())


# Milliseconds of a step on an H100 by hand, for sequences of 2048 tokens: of a q and an up projection of Llama-3-8B
BY_HAND = {
    ("frozen", 4096, 4096): (87.0, 87.0),
    ("lora", 4096, 4096): (126, 137),
    ("lors", 4096, 4096): (109, 132),
    ("lors-listing", 4096, 4096): (176, 199),
    ("sqft", 4096, 4096): (176, 235),
    ("sqft-gc", 4096, 4096): (176, 325),
    ("spp-gc-reentrant", 4096, 4096): (280, 577),
    ("lors", 14336, 4096): (383, 433),
    ("lora", 14336, 4096): (427, 411),
    ("sqft-gc", 14336, 4096): (618, 1137),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_roofline_of_a_linear(case: tuple[str, int, int]) -> None:
    name, rows, columns = case
    setting = Setting("linear", 2048, 1, 16, 2)
    found = [
        roofline._linear(work, rows, columns, setting, KNOWN["h100"]) * 1e6
        for work in (VARIANTS[name].forward, VARIANTS[name].backward)
    ]
    assert found == pytest.approx(BY_HAND[case], rel=0.02)


OF_A_MODEL = {
    "frozen": (100, 25.2),
    "lora": (129, 26.4),
    "lors": (125, 26.3),
    "lors-cached": (107, 40.3),
    "lors-packed": (121, 20.2),
    "sqft": (199, 47.3),
    "spp-gc": (345, 26.9),
    "spp-columns": (523, 32.0),
}


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_roofline_of_a_model(name: str) -> None:
    milliseconds, gigabytes = OF_A_MODEL[name]
    shape, setting = Shape.of(read_shape("llama-3-8b")), Setting("model", 2048, 1, 16, 2)
    assert roofline.seconds(name, shape, setting, KNOWN["h100"]) * 1e3 == pytest.approx(milliseconds, rel=0.07)
    assert roofline.peak_bytes(name, shape, setting, optimizer=True) / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_named_shapes_have_the_parameters_of_their_names() -> None:
    for name, billions in (
        ("smollm2-135m", 0.135),
        ("tinyllama-1.1b", 1.1),
        ("llama-2-7b", 6.74),
        ("llama-3-8b", 8.03),
    ):
        shape, tied = Shape.of(read_shape(name)), SHAPES[name][-1]
        count = shape.blocks * sum(r * c for r, c in shape.linears("model"))
        count += (1 if tied else 2) * shape.vocabulary * shape.hidden
        assert count / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.fixture(autouse=True)
def _quick_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MOST_ROUNDS", 2)
    monkeypatch.setattr(roofline, "calibrate", lambda *_: KNOWN["h100"])

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from lors_cli.artifacts import compressed_file, digest
from lors_cli.artifacts.tensors import PACKED_SUFFIX
from lors_cli.cli import app
from lors_cli.quantization.grid import Grid
from tests import quantized

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def pruned(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> Callable[..., Path]:
    """Prune a pico model with weights wide enough that headers and embeddings do not decide the size."""

    def make(sparsity: str, dtype: torch.dtype = torch.bfloat16, shard: str = "5GB") -> Path:
        wide = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
        model = make_model(tmp_path / "wide", dtype=dtype, shard=shard, **wide)
        lors("prune", write_config(model=str(model), dtype="auto", prune__sparsity=sparsity), "--force")
        return tmp_path / "run/pruned"

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sparsity", ["2:4", "0.5", "1:4"])
@pytest.mark.parametrize("layout", [None, "bitmask"])
def test_every_byte_comes_back(
    lors: Lors, pruned: Callable[..., Path], tmp_path: Path, sparsity: str, dtype: torch.dtype, layout: str | None
) -> None:
    model, packed, again = pruned(sparsity, dtype), tmp_path / "packed", tmp_path / "again"
    lors("pack", model, packed, *(["--layout", layout] if layout else []))
    lors("unpack", packed, again)
    assert files(again) == files(model)
    facts = json.loads((packed / "lors.json").read_text())
    expected = "2:4" if sparsity == "2:4" and layout is None else "bitmask"
    assert facts["tensors"][expected] == 14
    sizes = [sum(p.stat().st_size for p in d.glob("*.safetensors")) for d in (model, packed)]
    assert (facts["unpacked_bytes"], facts["bytes"]) == tuple(sizes)
    assert "pattern" in json.loads(lors("inspect", again, "--json").stdout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compressed(lors: Lors, pruned: Callable[..., Path], tmp_path: Path, dtype: torch.dtype) -> None:
    """Every byte comes back, of fewer; damage is named; and it does not pass for a model that runs."""
    model, plain, packed, again = pruned("2:4", dtype), *(tmp_path / name for name in ("plain", "packed", "again"))
    lors("pack", model, plain)
    lors("pack", model, packed, "--compress")
    assert sorted(path.name for path in packed.glob("*.safetensors")) == [f"model{compressed_file.SUFFIX}"]
    assert "lors generate" not in (packed / "README.md").read_text()  # which does not run it
    (one,), (other,) = (list(path.glob("*.safetensors")) for path in (packed, plain))
    most = 0.75 if dtype == torch.bfloat16 else 0.95
    assert one.stat().st_size < most * other.stat().st_size
    lors("unpack", packed, again)
    assert files(again) == files(model)
    for command in (["inspect", packed], ["generate", packed, "--prompt", "a"], ["pack", packed, tmp_path / "twice"]):
        assert "lors unpack" in " ".join(lors(*command, status=2).stderr.split())
    whole = one.read_bytes()
    for place in (20, 300, len(whole) // 2, len(whole) - 10):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        one.write_bytes(damaged)
        result = CliRunner().invoke(app, ["unpack", str(packed), str(tmp_path / "damaged")])
        assert result.exit_code in (1, 2)
        assert one.name in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr
    one.write_bytes(whole[:-100])
    lors("unpack", packed, tmp_path / "damaged", status=2)
    assert not (tmp_path / "damaged").exists()


def test_the_weights_take_nine_sixteenths(lors: Lors, pruned: Callable[..., Path], tmp_path: Path) -> None:
    model = pruned("2:4")
    lors("pack", model)
    (packed,) = Path(f"{model}-packed").glob(f"*{PACKED_SUFFIX}")
    stored = load_file(packed)
    dense = load_file(model / "model.safetensors")
    linears = [name for name in dense if "proj" in name]
    size = sum(t.numel() * t.itemsize for name, t in stored.items() if "proj" in name)
    assert size == sum(dense[name].numel() * 2 for name in linears) * 9 / 16
    assert all(torch.equal(stored[name], dense[name]) for name in dense if name not in linears)


def test_several_shards_and_a_model_that_lors_did_not_make(
    lors: Lors, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", shard="20KB")
    (model / "README.md").write_text("by others")
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 2
    tensors = load_file(shards[0])
    name = next(name for name in tensors if tensors[name].dim() == 2)
    tensors[name][:, ::2] = -0.0  # kept, because its bytes are not zero
    save_file(tensors, shards[0], metadata={"format": "pt", "note": "kept"})
    lors("pack", model, tmp_path / "packed")
    card = (tmp_path / "packed/README.md").read_text()
    assert "by others" in card
    assert "lors unpack DIRECTORY OUTPUT" in card
    lors("unpack", tmp_path / "packed", tmp_path / "again")
    assert files(tmp_path / "again") == files(model)
    (model / "README.md").unlink()
    lors("pack", model, tmp_path / "bare")
    assert "lors_cli.load(" in (tmp_path / "bare/README.md").read_text()
    lors("unpack", tmp_path / "bare", tmp_path / "without")
    assert not (tmp_path / "without/README.md").exists()
    assert not (tmp_path / "again/lors.json").exists()


def test_a_packed_model_is_not_taken_for_a_model(
    lors: Lors, write_config: WriteConfig, pruned: Callable[..., Path], tmp_path: Path
) -> None:
    lors("pack", pruned("2:4"), tmp_path / "packed")
    assert "lors unpack" in lors("pack", tmp_path / "packed", status=2).stderr
    config = write_config(train__input=str(tmp_path / "packed"))
    said = lors("train", config, status=2).stderr
    assert "lors unpack" in said
    assert "train.base: packed" in said


def test_what_is_there_is_not_replaced_by_accident(lors: Lors, pruned: Callable[..., Path], tmp_path: Path) -> None:
    model, packed = pruned("2:4"), tmp_path / "packed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    for option in ([], ["--force"]):
        assert "OUTPUT" in lors("pack", model, tmp_path / "mine", *option, status=2).stderr
    assert "OUTPUT" in lors("pack", model, model, "--force", status=2).stderr
    lors("pack", model, model / "inside")
    assert "OUTPUT" in lors("unpack", model / "inside", model, "--force", status=2).stderr
    lors("pack", model, packed)
    assert "--force" in lors("pack", model, packed, status=2).stderr
    lors("pack", model, packed, "--force", "--layout", "bitmask")
    assert "--layout" in lors("pack", model, tmp_path / "other", "--layout", "csr", status=2).stderr
    unstructured = pruned("0.5")
    refused = lors("pack", unstructured, tmp_path / "other", "--layout", "2:4", status=2).stderr
    assert "proj.weight" in refused
    assert "at most 2 nonzeros in every 4 inputs" in refused
    assert "PACKED" in lors("unpack", model, tmp_path / "other", status=2).stderr
    assert "PACKED" in lors("unpack", tmp_path / "absent", tmp_path / "other", status=2).stderr
    assert not (tmp_path / "other").exists()


def change(file: Path, **changes: Any) -> None:
    """Give a packed file other metadata."""
    with safe_open(file, "pt") as opened:
        metadata = {**opened.metadata(), **changes}
    save_file(load_file(file), file, metadata={key: value for key, value in metadata.items() if value is not None})


def test_damaged_and_other_versions(lors: Lors, pruned: Callable[..., Path], tmp_path: Path) -> None:
    model, packed = pruned("0.5"), tmp_path / "packed"
    lors("pack", model, packed)
    (file,) = packed.glob(f"*{PACKED_SUFFIX}")
    whole, out = file.read_bytes(), tmp_path / "out"

    def unpack(status: int, *words: str) -> None:
        text = lors("unpack", packed, out, status=status).stderr
        for word in (file.name, *words):
            assert word in text
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
        file.write_bytes(whole)

    change(file, lors_packed="7")
    unpack(2, "version 1", "version 7")
    change(file, lors_packed=None)
    unpack(2, "another safetensors file")
    change(file, header="?")
    unpack(2, "a damaged one")
    file.write_bytes(whole[:-100])
    unpack(2, "truncated or damaged")
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    unpack(1, "damaged", "copy it again")
    stored = load_file(file)
    name = next(name for name in stored if name.endswith(".positions"))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    stored[name] = torch.full_like(stored[name], 255)  # more positions than values
    save_file(stored, file, metadata=metadata)
    unpack(1, "damaged")
    stored.pop(name)
    save_file(stored, file, metadata=metadata)
    unpack(1, "damaged")
    file.write_bytes(whole)
    config = (packed / "config.json").read_text()
    (packed / "config.json").write_text(config + " ")
    assert "was changed since" in lors("unpack", packed, out, status=1).stderr
    (packed / "config.json").write_text(config)
    (packed / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "missing" in lors("unpack", packed, out, status=1).stderr
    (tmp_path / "tokenizer.json").rename(packed / "tokenizer.json")
    lors("unpack", packed, out)
    assert files(out) == files(model)


def test_only_what_belongs_to_the_model_is_packed(lors: Lors, make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    (model / "LICENSE").write_text("free")
    whole = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    for name in ("notes.txt", "optimizer.pt", "states.npy", "credentials.json", "modeling_own.py"):
        (model / name).write_text("canary")
    (model / "runs").mkdir()
    said = lors("pack", model, tmp_path / "packed").stderr
    assert "credentials.json, modeling_own.py, notes.txt, optimizer.pt, runs, states.npy; --trust-remote-code" in said
    (tmp_path / "packed/planted.pkl").write_text("canary")  # no digest is of it
    lors("unpack", tmp_path / "packed", again := tmp_path / "again")
    assert {p.relative_to(again).as_posix(): p.read_bytes() for p in again.rglob("*") if p.is_file()} == whole
    lors("pack", model, tmp_path / "with-code", "--trust-remote-code")
    lors("unpack", tmp_path / "with-code", tmp_path / "with-code-again")
    assert {path.name for path in (tmp_path / "with-code-again").glob("*.py")} == {"modeling_own.py"}


def test_a_packed_directory_of_the_time_without_lists(lors: Lors, pruned: Callable[..., Path], tmp_path: Path) -> None:
    model, packed = pruned("2:4"), tmp_path / "packed"
    (model / "own.py").write_text("")
    for directory, made in ((model, "lors.json"), (packed, "lors.json")):
        if directory == packed:
            lors("pack", model, packed)
            assert (packed / "own.py").is_file()
        content = json.loads((directory / made).read_text())
        content |= {"digest": digest.of_directory(directory), "versions": {"lors_cli": "0.1.0"}}
        (directory / made).write_text(json.dumps({k: v for k, v in content.items() if k not in ("files", "seal")}))
    lors("unpack", packed, tmp_path / "again")
    assert files(tmp_path / "again") == files(model)


@pytest.mark.parametrize("grid", [Grid(4, 16), Grid(3, 32, symmetric=False), Grid(8, 8)], ids=str)
@pytest.mark.parametrize("sparsity", ["2:4", "0.6"])
def test_quantised_models_come_back_byte_for_byte(
    lors: Lors, pruned: Callable[..., Path], tmp_path: Path, grid: Grid, sparsity: str
) -> None:
    model = quantized.write(pruned(sparsity, shard="200KB"), tmp_path / "model", grid, scale=torch.bfloat16)
    lors("pack", model, tmp_path / "packed")
    lors("unpack", tmp_path / "packed", tmp_path / "again")
    assert files(tmp_path / "again") == files(model)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "packed/model.packed.safetensors")
    weights = sum(int(shape.prod()) for name, shape in before.items() if name.endswith("weight_shape"))
    bits = 8 * sum(t.nbytes for name, t in after.items() if "weight_packed" in name) / weights
    most = 1 + grid.bits * (0.5 if sparsity == "2:4" else 0.4)
    assert most * 0.9 < bits < most * 1.05  # weights that were rounded to zero are left out too


def test_codes_that_are_no_weight_are_kept_as_they_are(lors: Lors, pruned: Callable[..., Path], tmp_path: Path) -> None:
    model = quantized.write(pruned("2:4"), tmp_path / "model", Grid(3, 4), scale=torch.bfloat16)
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight_packed"))
    tensors[name] = tensors[name][:, :-1].contiguous()  # no longer a weight of this shape
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    lors("pack", model, tmp_path / "packed")
    assert name in load_file(tmp_path / "packed/model.packed.safetensors")
    lors("unpack", tmp_path / "packed", tmp_path / "again")
    assert files(tmp_path / "again") == files(model)


@pytest.mark.parametrize("grid", [None, Grid(3, 16)], ids=["floats", "codes"])
@pytest.mark.parametrize("options", [[], ["--compress"]], ids=["packed", "compressed"])
def test_a_linear_of_zeros_alone_comes_back(
    lors: Lors, make_model: Callable[..., Path], tmp_path: Path, grid: Grid | None, options: list[str]
) -> None:
    model, packed, again = (tmp_path / name for name in ("model", "packed", "again"))
    make_model(model)
    tensors = load_file(model / "model.safetensors")
    zeros = [name for name in tensors if name.endswith("q_proj.weight")]
    save_file(
        tensors | {name: torch.zeros_like(tensors[name]) for name in zeros},
        model / "model.safetensors",
        {"format": "pt"},
    )
    if grid:
        model = quantized.write(model, tmp_path / "quantized", grid)
    lors("pack", model, packed, *options)
    lors("unpack", packed, again)
    assert files(again) == files(model)
    if not options:
        lors("generate", packed, model, "--prompt", "def", "--max-new-tokens", "2")

"""Models that run packed, against the same models in transformers."""

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

import lors_cli
from lors_cli.adapters.dense_linear import DenseLinear
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.api import attach
from lors_cli.artifacts.tensors import PACKED_SUFFIX
from lors_cli.errors import LorsError
from lors_cli.quantization.grid import Grid
from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern
from lors_cli.tools.pack import pack
from tests import quantized

IDS = torch.arange(20).view(2, 10) * 7 % 300


@pytest.fixture(scope="module")
def sparse(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a pico model with zeros, and its packed directory beside it."""

    def make(sparsity: str, dtype: torch.dtype = torch.float32, shard: str = "5GB", **options: object) -> Path:
        path = make_model(tmp_path_factory.mktemp("model") / "model", dtype=dtype, shard=shard, **options)
        for file in path.glob("*.safetensors"):
            tensors = load_file(file)
            for name, tensor in tensors.items():
                if "proj.weight" in name:
                    scores = torch.rand(tensor.shape)
                    tensor.masked_fill_(~keep_largest(scores, Pattern.parse(sparsity), per_row=True), 0)
            save_file(tensors, file, metadata={"format": "pt"})
        pack(path, Path(f"{path}-packed"))
        return path

    return make


@pytest.mark.parametrize("sparsity", ["2:4", "0.5"])
@pytest.mark.parametrize("options", [{}, {"shard": "20KB", "attention_bias": True, "tie_word_embeddings": False}])
def test_the_same_logits_and_tokens(sparse: Callable[..., Path], sparsity: str, options: dict[str, object]) -> None:
    path = sparse(sparsity, **options)
    dense = lors_cli.load(path)
    for directory in (Path(f"{path}-packed"), path):
        model = lors_cli.load(directory, packed=True)
        layouts = {m.stored.layout for m in model.modules() if isinstance(m, PackedLinear)}
        assert layouts == {"2:4" if sparsity == "2:4" else "bitmask"}
        assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 14
        torch.testing.assert_close(model(IDS).logits, dense(IDS).logits.detach(), rtol=1e-4, atol=1e-5)
        options_ = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(IDS, **options_), dense.generate(IDS, **options_))
        assert model.generation_config.to_dict() == dense.generation_config.to_dict()


def test_dtypes(sparse: Callable[..., Path]) -> None:
    path = sparse("0.5", torch.bfloat16)
    for dtype in ("auto", "float32", "float16"):
        model, dense = lors_cli.load(f"{path}-packed", packed=True, dtype=dtype), lors_cli.load(path, dtype=dtype)
        assert model.dtype == dense.dtype
        torch.testing.assert_close(model(IDS).logits, dense(IDS).logits.detach(), rtol=2e-2, atol=2e-2)


GRIDS = [Grid(4, 16), Grid(3, 8, symmetric=False), Grid(8, 16), Grid(6, 32, symmetric=False)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantised_models_stay_codes(sparse: Callable[..., Path], tmp_path: Path, grid: Grid) -> None:
    path = quantized.write(sparse("2:4"), tmp_path / "quantized", grid)
    pack(path, tmp_path / "packed")
    dense = lors_cli.load(path)
    for directory in (path, tmp_path / "packed"):
        model = lors_cli.load(directory, packed=True)
        stored = [m.stored for m in model.modules() if isinstance(m, PackedLinear)]
        assert [one.layout for one in stored] == ["2:4"] * 14
        assert {one.values.dtype for one in stored} == {torch.uint8 if grid.bits <= 4 else torch.int8}
        torch.testing.assert_close(model(IDS).logits, dense(IDS).logits.detach(), rtol=1e-4, atol=1e-5)
        options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(IDS, **options), dense.generate(IDS, **options))
        for dtype in ("bfloat16", "float16"):
            as_numbers = lors_cli.load(path, dtype=dtype)(IDS).logits.detach()
            packed = lors_cli.load(directory, packed=True, dtype=dtype)
            torch.testing.assert_close(packed(IDS).logits, as_numbers, rtol=2e-2, atol=2e-2)
        with pytest.raises(ValueError, match=r"train\.base"):
            attach(model)


def test_what_packing_makes_larger_stays_dense(sparse: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    path = sparse("0.5")
    file = path / "model.safetensors"
    tensors = load_file(file)
    full = "model.layers.1.mlp.up_proj"
    tensors[f"{full}.weight"].fill_(0.01)
    save_file(tensors, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        model = lors_cli.load(path, packed=True)
    assert f"1 of 14 linears stay dense, such as {full}" in caplog.text
    for dense in (full, "lm_head"):
        assert type(model.get_submodule(dense)) is DenseLinear
    assert model.lm_head.weight is model.get_input_embeddings().weight
    torch.testing.assert_close(model(IDS).logits, lors_cli.load(path)(IDS).logits.detach(), rtol=1e-4, atol=1e-5)


def test_it_is_not_trained_and_not_saved(sparse: Callable[..., Path], tmp_path: Path) -> None:
    path = sparse("2:4")
    model = lors_cli.load(path, packed=True)
    with pytest.raises(ValueError, match=r"train\.base: packed"):
        attach(model)
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match=r"train\.base: packed"):
        model(IDS)
    with pytest.raises(ValueError, match="is not saved"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="lors unpack"):
        lors_cli.load(f"{path}-packed")
    attach(lors_cli.load(path), packed=True)  # the remedy


def test_damaged_files_are_refused(sparse: Callable[..., Path], tmp_path: Path) -> None:
    chosen = random.Random(0)
    for sparsity in ("2:4", "0.5"):
        packed = Path(f"{sparse(sparsity, torch.bfloat16)}-packed")
        whole = (packed / f"model{PACKED_SUFFIX}").read_bytes()
        for number in range(8):
            broken, content = tmp_path / f"{sparsity}-{number}", bytearray(whole)
            shutil.copytree(packed, broken)
            header = int.from_bytes(whole[:8], "little")
            place = chosen.randrange(header if number % 3 else len(whole))
            if number % 4 == 3:
                content = content[:place]
            else:
                content[place] ^= 1 << chosen.randrange(8)
            (broken / f"model{PACKED_SUFFIX}").write_bytes(content)
            with pytest.raises((ValueError, LorsError)):
                lors_cli.load(broken, packed=True)


@pytest.mark.parametrize("missing", ["a shard", "a version", "a plain file beside it"])
def test_other_directories_are_refused(sparse: Callable[..., Path], tmp_path: Path, missing: str) -> None:
    path = sparse("2:4", shard="20KB")
    packed = Path(f"{path}-packed")
    shutil.copytree(packed, changed := tmp_path / "changed")
    file = min(changed.glob(f"*{PACKED_SUFFIX}"))
    if missing == "a shard":
        file.unlink()
    elif missing == "a version":
        save_file(load_file(file), file, metadata={"lors_packed": "7"})
    else:
        shutil.copyfile(min(path.glob("*.safetensors")), changed / "other.safetensors")
    words = {"a shard": f"lacks {file.name}", "a version": "version 7", "a plain file beside it": "other.safetensors"}
    with pytest.raises((ValueError, LorsError), match=words[missing]):
        lors_cli.load(changed, packed=True)


def test_a_model_that_structured_pruning_made_smaller(
    lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    lors("prune", write_config(prune={"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 0}))
    model = tmp_path / "run/pruned"
    assert (model / "structure.json").is_file()
    tensors = load_file(model / "model.safetensors")
    tensors = {name: t * (torch.rand_like(t) < 0.5) if "proj" in name else t for name, t in tensors.items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    dense, packed = lors_cli.load(model), lors_cli.load(model, packed=True)
    torch.testing.assert_close(packed(IDS).logits, dense(IDS).logits.detach(), rtol=1e-4, atol=1e-5)


def test_eval_and_inspect_read_packed_directories(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    sparse: Callable[..., Path],
    task_dir: Path,
    tmp_path: Path,
) -> None:
    path = sparse("2:4")
    coded = quantized.write(path, tmp_path / "coded")
    pack(coded, tmp_path / "coded-packed")
    config = write_config(
        model=str(path),
        eval__models=[str(path), f"{path}-packed", str(coded), f"{coded}-packed"],
        eval__tasks=["words"],
        eval__task_dir=str(task_dir),
        prune=...,
        train=...,
        merge=...,
    )
    lors("eval", config)
    results = list(json.loads((tmp_path / "run/eval/results.json").read_text())["models"].values())
    for plain, packed in (results[:2], results[2:]):
        assert packed["perplexity"]["value"] == pytest.approx(plain["perplexity"]["value"], rel=1e-5)
        assert packed["tasks"] == plain["tasks"]
        assert packed["sparsity"] == plain["sparsity"]
    for directory in (path, coded):
        facts = json.loads(lors("inspect", f"{directory}-packed", "--json").stdout)
        unpacked = json.loads(lors("inspect", directory, "--json").stdout)
        assert facts["modules"] == unpacked["modules"]
        assert facts["packed"]["tensors"]["2:4" if directory == path else "bitmask"] == 14
        assert facts.get("quantization") == unpacked.get("quantization")

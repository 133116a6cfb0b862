"""The heatmaps of `lors inspect --plots`: their numbers against the product itself, where they go, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import Result

from lors_cli.artifacts import adapter_file
from lors_cli.models import linears, load, structure
from lors_cli.sparsity import mask
from tests.models.test_structure import RANDOM

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
Modules = dict[str, dict[str, Tensor]]
HEADS = {"q_proj": 4, "k_proj": 2, "v_proj": 2, "o_proj": 4}  # of the pico model, 8 numbers wide
NOT_ADAPTED = ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.gate_proj")


@pytest.fixture
def modules(dense: Path) -> Modules:
    """Random tensors of rank 3 for all linears of the pico model but two."""
    shapes = linears.shapes(load.skeleton(dense))
    return {
        name: {"lora_A": torch.randn(3, columns), "lora_B": torch.randn(rows, 3)}
        for name, (rows, columns) in shapes.items()
        if name not in NOT_ADAPTED
    }


@pytest.fixture
def adapter(dense: Path, tmp_path: Path, modules: Modules) -> Callable[..., Path]:
    """Write an adapter for the pico model."""

    def write(method: str = "lora", base: str = str(dense)) -> Path:
        content = adapter_file.AdapterFile(method, 3, 6.0, modules)
        adapter_file.save_whole(tmp_path / "adapter", content, base=base, dropout=0.0)
        return tmp_path / "adapter"

    return write


def pictures(directory: Path) -> list[str]:
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in directory.iterdir())
    return sorted(path.name for path in directory.iterdir())


def expected(modules: Modules, place: str) -> Tensor:
    """The norms of a place by the explicit product, -1 where there is no adapter."""
    norms = torch.full((2, HEADS.get(place, 1)), -1.0, dtype=torch.float64)
    for number in range(2):
        if named := modules.get(f"model.layers.{number}.{'self_attn' if place in HEADS else 'mlp'}.{place}"):
            product = 2 * named["lora_B"].double() @ named["lora_A"].double()
            parts = product.chunk(norms.shape[1], dim=1 if place == "o_proj" else 0)
            norms[number] = torch.stack([part.norm() for part in parts])
    return norms if place in HEADS else norms.squeeze(1)


def mean_of_parts(modules: Modules, number: int, place: str, mask: Tensor | None = None) -> float:
    """Eq. 11 of LoRAM, one row or column after the other; -1 where there is no adapter."""
    if (named := modules.get(f"model.layers.{number}.mlp.{place}")) is None:
        return -1.0
    product = 2 * named["lora_B"].double() @ named["lora_A"].double() * (1 if mask is None else mask)
    norms = [float(part.norm()) for part in (product.T if place == "down_proj" else product) if part.any()]
    return sum(norms) / len(norms) if norms else 0.0


def test_rows_and_columns_of_zeros_do_not_count_in_the_mean(
    lors: Lors, adapter: Callable[..., Path], dense: Path, modules: Modules
) -> None:
    for place, tensor in (("up_proj", "lora_B"), ("down_proj", "lora_A")):
        one = modules[f"model.layers.0.mlp.{place}"][tensor]
        (one if place == "up_proj" else one.T)[5:50] = 0
    modules["model.layers.1.mlp.up_proj"]["lora_B"].zero_()  # as before any training
    means = json.loads(lors("inspect", adapter(), "--plots", "--json").stdout)["update_mean_norms"]
    for place in ("up_proj", "down_proj"):
        torch.testing.assert_close(means[place], [mean_of_parts(modules, number, place) for number in range(2)])
    masks = {name: torch.rand(len(named["lora_B"]), named["lora_A"].shape[1]) > 0.5 for name, named in modules.items()}
    for name, named in modules.items():
        named["mask"] = mask.to_bits(masks[name])
    facts = json.loads(lors("inspect", adapter("loram"), "--plots", "--json").stdout)
    assert facts["update_norms"]["update"] == "scale * lora_B @ lora_A * mask"
    for place in ("up_proj", "down_proj"):
        names = [f"model.layers.{number}.mlp.{place}" for number in range(2)]
        wanted = [mean_of_parts(modules, number, place, masks[name]) for number, name in enumerate(names)]
        assert facts["update_mean_norms"][place] == pytest.approx(wanted, rel=1e-6)
        products = [2 * modules[name]["lora_B"] @ modules[name]["lora_A"] * masks[name] for name in names]
        assert facts["update_norms"][place] == pytest.approx([float(one.norm()) for one in products], rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "lors"])
def test_the_norms_are_those_of_the_product(
    lors: Lors, adapter: Callable[..., Path], modules: Modules, tmp_path: Path, method: str
) -> None:
    path = adapter(method)
    before = sorted(path.iterdir())
    facts = json.loads(lors("inspect", path, "--plots", "--json").stdout.replace("null", "-1"))
    norms = facts["update_norms"]
    assert ("before the mask" in norms.pop("update")) == (method == "lors")
    assert set(norms) == {*HEADS, "gate_proj", "up_proj", "down_proj"}
    for place, values in norms.items():
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected(modules, place))
    means = facts["update_mean_norms"]
    assert set(means) == {"gate_proj", "up_proj", "down_proj"}
    for place, values in means.items():
        assert values == pytest.approx([mean_of_parts(modules, number, place) for number in range(2)], rel=1e-6)
    assert pictures(tmp_path / "plots") == ["adapter_attention.png", "adapter_mlp.png"]
    assert facts["plots"] == [str(tmp_path / "plots" / name) for name in pictures(tmp_path / "plots")]
    assert sorted(path.iterdir()) == before


def test_removed_heads_are_blank_and_recovered_ones_zero(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("run", write_config(prune=RANDOM, train__method="lora", recover={}, merge=..., eval=...))
    run = tmp_path / "run"
    kept = structure.read(run / "pruned")
    assert kept
    small, whole = (
        json.loads(lors("inspect", run / name, "--plots", "--json").stdout)["update_norms"]
        for name in ("adapter", "recovered")
    )
    for place, heads in HEADS.items():
        for number, block in enumerate(kept.blocks):
            for head, (of_small, of_whole) in enumerate(zip(small[place][number], whole[place][number], strict=True)):
                if head // (heads // 2) in block.groups:
                    assert of_small == pytest.approx(of_whole, rel=1e-9) != 0
                else:
                    assert (of_small, of_whole) == (None, 0.0)
    assert small["up_proj"] == pytest.approx(whole["up_proj"], rel=1e-9)
    shown = lors("inspect", run / "pruned", "--plots").stdout
    assert shown.endswith(f"\n\n{run / 'plots/pruned_sparsity.png'}\n")
    names = [f"{name}_{what}.png" for name in ("adapter", "recovered") for what in ("attention", "mlp")]
    assert pictures(run / "plots") == sorted([*names, "pruned_sparsity.png"])


def test_a_models_blocks_stand_in_their_order(lors: Lors, make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", num_hidden_layers=11)
    facts = json.loads(lors("inspect", path, "--plots", "--json").stdout)
    assert list(facts["modules"]) == list(linears.all_linears(load.skeleton(path)))
    assert pictures(tmp_path / "plots") == ["model_sparsity.png"]


def test_the_model_and_the_folder_can_be_named(
    lors: Lors, adapter: Callable[..., Path], dense: Path, tmp_path: Path
) -> None:
    path = adapter(base="/gone/model")
    said = lors("inspect", path, "--plots", status=2).stderr
    assert "--base MODEL" in said
    assert "/gone/model" in said
    lors("inspect", path, "--plots", "--base", dense, "--output", tmp_path / "here/below")
    assert len(pictures(tmp_path / "here/below")) == 2
    assert not (tmp_path / "plots").exists()
    (tmp_path / "file").touch()
    assert (
        "--output" in lors("inspect", path, "--plots", "--base", dense, "--output", path / "../file", status=2).stderr
    )


def test_a_model_of_other_heads_is_refused(
    lors: Lors, adapter: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = adapter(base="")
    assert "none in adapter_config.json" in lors("inspect", path, "--plots", status=2).stderr
    other = make_model(tmp_path / "other", num_key_value_heads=4)
    assert "other names or shapes" in lors("inspect", path, "--plots", "--base", other, status=2).stderr


def test_what_has_no_norms_is_refused(
    lors: Lors, adapter: Callable[..., Path], modules: Modules, tmp_path: Path
) -> None:
    first = "model.layers.0.self_attn.q_proj"
    modules[first]["lora_A"][0, 0] = torch.nan
    assert f"NaN or infinity in {first}" in lors("inspect", adapter(), "--plots", status=2).stderr
    for named in modules.values():
        named.update(spp_alpha=named.pop("lora_A").nan_to_num(), spp_beta=named.pop("lora_B")[:, :1].contiguous())
    assert "not a low-rank product" in lors("inspect", adapter("spp"), "--plots", status=2).stderr
    assert not (tmp_path / "plots").exists()

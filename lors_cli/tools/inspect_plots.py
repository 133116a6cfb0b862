"""``lors inspect --plots``: where an adapter's update is large, head by head and block by block; a model's sparsity.

After appendix C of LoRAM, Zhang et al. 2025, arXiv 2502.13533: L2 norms of the update of each attention head (Eq. 10)
and of each MLP linear, and of the latter the mean norm of its rows or columns (Eq. 11). Where a method masks its
update, the norms are those of the product before the mask; a recovered adapter that has its mask with it tells more.
"""

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli import adapters
from lors_cli.artifacts import adapter_file, files
from lors_cli.errors import LorsError, RequestError, request_error
from lors_cli.models import linears, load, source, structure
from lors_cli.models.structure import Kept, Structure
from lors_cli.run import manifest
from lors_cli.run.lineage import Lineage
from lors_cli.sparsity import mask

QUERY, KEY = "query head", "key/value head"
HEADS = {"q_proj": QUERY, "k_proj": KEY, "v_proj": KEY, "o_proj": QUERY}
LAYERS = ("up_proj", "gate_proj", "down_proj")
NOTHING = "0.8"  # grey, which is not on the scale


@dataclass(frozen=True)
class Panel:
    """A heatmap: `grid` (blocks, columns) with NaN where there is nothing, and what its columns are."""

    title: str
    grid: Tensor
    across: str | list[str]


def draw(facts: dict[str, Any], *, base: str | None, output: Path | None) -> dict[str, Any]:
    """Draw the pictures of a directory that was inspected.

    Args:
        facts: what `inspect` says of it.
        base: the model that an adapter was trained for; the one that the adapter names if None.
        output: where the pictures go; if None into ``plots`` beside the directory, whose digest counts what is in it.

    Returns:
        more facts: the paths of the pictures, and the norms of an adapter.

    Raises:
        RequestError: `base` is given for a model; the adapter's update is not a low-rank product, or its model is not
            known; or `output` is a file.
        LorsError: the update is not finite, or a picture cannot be written.

    """
    path = Path(facts["path"]).resolve()
    if base and facts["kind"] == "model":
        raise request_error("--base", "an adapter as PATH, which --base is for", f"{path}, a model", "leave --base out")
    pictures, norms = _of_model(path, facts) if facts["kind"] == "model" else _of_adapter(path, facts, base)
    directory = output or path.parent / "plots"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise request_error("--output", "a folder that can be written to", error, "name another one") from None
    paths = []
    for name, content in pictures.items():
        paths.append(directory / f"{path.name}_{name}.png")
        files.write_bytes(paths[-1], content)
    return {**norms, "plots": [str(one) for one in paths]}


def _of_model(path: Path, facts: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
    by_block = linears.by_block(list(facts["modules"])).values()
    blocks = [{name.rpartition(".")[2]: facts["modules"][name]["sparsity"] for name in names} for names in by_block]
    places = list(dict.fromkeys(place for block in blocks for place in block))
    grid = torch.tensor([[block.get(place, math.nan) for place in places] for block in blocks])
    title = f"{path.name}: sparsity {facts['sparsity']:.4f}"
    return {"sparsity": _heatmaps(title, [Panel("linears of the blocks", grid, places)], "zeros / weights", 1.0)}, {}


def _of_adapter(path: Path, facts: dict[str, Any], base: str | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    method = adapters.ON_DISK[facts["method"]]
    if not method.low_rank:
        expected = f"an adapter of {', '.join(name for name, row in adapters.METHODS.items() if row.low_rank)}"
        got = f"{facts['method']}, whose update is not a low-rank product"
        raise request_error("--plots", expected, got, "inspect it without --plots")
    norms, means = update_norms(path, base)
    masked = " * mask" if facts["method"] == adapters.MASKED else " before the mask" if method.keeps_zeros else ""
    update = f"scale * lora_B @ lora_A{masked}"
    title = f"{path.name}: {facts['method']}, rank {facts['rank']}, alpha {facts['alpha']:g}\n{update}"
    pictures = {}
    if heads := [Panel(place, norms[place], across) for place, across in HEADS.items() if place in norms]:
        pictures["attention"] = _heatmaps(title, heads, "L2 norm of the head's update")
    if layers := [place for place in LAYERS if place in norms]:
        drawn = {"whole linear": norms, "mean of its rows or columns": means}
        panels = [
            Panel(what, torch.stack([grid[place] for place in layers], 1), layers) for what, grid in drawn.items()
        ]
        pictures["mlp"] = _heatmaps(title, panels, "L2 norm of the update")
    if not pictures:
        expected = "an adapter of linears of the blocks"
        raise request_error("PATH", expected, f"{path}, which adapts none of them", "inspect it without --plots")
    listed = ({place: _listed(grid.tolist()) for place, grid in grids.items()} for grids in (norms, means))
    return pictures, {"update_norms": {"update": update, **next(listed)}, "update_mean_norms": next(listed)}


def _listed(values: list[Any]) -> list[Any]:
    """Nested lists with null for NaN, which JSON does not have."""
    return [_listed(one) if isinstance(one, list) else None if math.isnan(one) else one for one in values]


def update_norms(directory: Path, base: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The norms of an adapter's update by the places of its linears, and the means of the norms of its parts.

    The first are Frobenius norms, (blocks, heads) for attention linears and (blocks,) for MLP linears. The second are
    those of Eq. 11, (blocks,) for MLP linears: the mean L2 norm of the rows of up_proj and gate_proj, and of the
    columns of down_proj, over those that are not zero.

    Heads have the numbers that they have in the original. NaN stands for a head that was removed, and for a linear
    without an adapter.

    Raises:
        RequestError: the adapter's model is not known, or it does not fit it.
        LorsError: the update is not finite.

    """
    content = adapter_file.load(directory, "PATH", uniform=False)
    named = json.loads((directory / adapter_file.CONFIG).read_text()).get("base_model_name_or_path")
    if named and os.path.isabs(named) and not os.path.isdir(named) and (made := manifest.read(directory)):
        # the run was moved since, perhaps together with its model
        step = Lineage(run=directory.absolute().parent).input(made, "model" if made.stage == "recover" else "pruned")
        named = str(step.directory) if step else named
    prefix, kept_in = _base(base or named, content.modules)
    sizes, norms, means = kept_in.sizes, dict[str, Tensor](), dict[str, Tensor]()
    heads = {QUERY: (sizes.groups, sizes.heads_per_group), KEY: (sizes.groups, 1)}
    for number, kept in enumerate(kept_in.blocks):
        for part in structure.PLACES:
            module, place = f"{prefix}.{number}.{part}", part.rpartition(".")[2]
            if module not in content.modules:
                continue
            rank, alpha = content.of(module)
            scale = alpha / rank
            squares = _squares(content.modules[module], by_columns=place in structure.COLUMNS)
            if not squares.isfinite().all():
                raise LorsError(f"{directory}: the update of {module} is not finite")
            shape = heads[HEADS[place]] if place in HEADS else ()
            blank = torch.full((len(kept_in.blocks), *shape), math.nan, dtype=torch.float64)
            grid = norms.setdefault(place, blank)
            if shape:
                squares = squares.view(-1, shape[1], sizes.head_width)
                grid[number, kept.groups] = scale * squares.sum(-1).sqrt()
            else:
                grid[number] = scale * squares.sum().sqrt()
                parts = squares[squares > 0].sqrt()
                mean = means.setdefault(place, torch.full_like(grid, math.nan))
                mean[number] = scale * parts.sum() / max(len(parts), 1)
    return {place: grid.flatten(1) if place in HEADS else grid for place, grid in norms.items()}, means


def _squares(named: dict[str, Tensor], *, by_columns: bool) -> Tensor:
    """The squared norms of the rows, or columns, of an adapter's product, (R,) or (C,); under its own mask if any."""
    lora_A, lora_B = named["lora_A"], named["lora_B"]
    if "mask" not in named:
        return row_squares(lora_A.T, lora_B.T) if by_columns else row_squares(lora_B, lora_A)
    product = lora_B.double() @ lora_A.double() * mask.from_bits(named["mask"], lora_A.shape[1])
    return product.square().sum(0 if by_columns else 1)


def row_squares(left: Tensor, right: Tensor) -> Tensor:
    """The squared norms of the rows of ``left @ right``, without the product.

    With right^T = Q T they are those of left @ T^T, because Q keeps lengths.

    Args:
        left: (R, r).
        right: (r, C).

    Returns:
        (R,), float64.

    """
    triangle: Tensor = torch.linalg.qr(right.T.double(), mode="r").R
    return (left.double() @ triangle.T).square().sum(1)


def _base(name: str | None, modules: dict[str, dict[str, Tensor]]) -> tuple[str, Structure]:
    """What the names of the blocks of the model `name` begin with, and which heads each block has."""
    if not name:
        raise _no_base(f"none in {adapter_file.CONFIG}")
    try:
        directory = source.resolve(name, weights=False)
        model = load.skeleton(directory)
        prefix, blocks = linears.find_blocks(model)
        heads = structure.read(directory)
        if heads is None:
            sizes = structure.sizes(model, "--base")
            heads = Structure(sizes, [Kept(list(range(sizes.groups)), [])] * len(blocks), "", 0)
    except RequestError as error:
        raise _no_base(error.problems[0].got) from None
    shapes = linears.shapes(model, asked=modules)
    fits = [(len(t["lora_B"]), t["lora_A"].shape[1]) == shapes[m] for m, t in modules.items() if m in shapes]
    if not fits or not all(fits):
        raise _no_base(f"{name}, whose linears have other names or shapes")
    return prefix, heads


def _no_base(got: str) -> RequestError:
    expected = "the model that the adapter was trained for, of Llama's form: its heads are not in the adapter's files"
    return request_error("--base", expected, got, "name it, or a directory with its config.json: --base MODEL")


def _heatmaps(title: str, panels: list[Panel], label: str, most: float | None = None) -> bytes:
    """A PNG of heatmaps side by side, each with its own scale, which begins at zero and ends at `most` if given."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    # inches; a column takes more where it has a name
    widths = [min((0.25 if isinstance(p.across, str) else 0.9) * p.grid.shape[1] + 0.5, 5.5) for p in panels]
    height = min(0.2 * len(panels[0].grid) + 1.5, 9.5)
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(sum(widths) + 1.1 * len(panels), height + 1.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        for one, panel in zip(axes, panels, strict=True):
            one.set_facecolor(NOTHING)  # an image leaves NaN out
            top = most or float(panel.grid.nan_to_num().max()) or 1.0  # an untrained adapter is all zeros
            image = one.imshow(panel.grid.numpy(), aspect="auto", interpolation="nearest", vmin=0.0, vmax=top)
            bar = figure.colorbar(image, ax=one, fraction=0.5, aspect=height / 0.15)
            one.set_title(panel.title)
            one.yaxis.set_major_locator(MaxNLocator(integer=True))
            if isinstance(panel.across, str):
                one.set_xlabel(panel.across)
                one.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                one.set_xticks(range(len(panel.across)), panel.across)
        axes[0].set_ylabel("block")
        bar.set_label(label)  # the last one's is that of all
        figure.suptitle(title, fontsize=10)
        if any(panel.grid.isnan().any() for panel in panels):
            patch = Patch(color=NOTHING, label="removed, or without an adapter")
            figure.legend(handles=[patch], loc="outside lower left", frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()

"""What ``lors bench --decode`` measures: the weights of linears, and a model in several forms."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lors_cli.adapters.dense_linear import DenseLinear
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.artifacts import model_files, quantized_files, tensors
from lors_cli.artifacts.packed_model import is_packed
from lors_cli.benchmark.roofline import Shape
from lors_cli.benchmark.subject import SHAPES, build, read_shape
from lors_cli.errors import request_error
from lors_cli.kernels import huge_pages
from lors_cli.kernels import packed as kernel
from lors_cli.models import linears, load, memory, source
from lors_cli.models.packed import load_packed, speed_up_head
from lors_cli.quantization import packed as codes
from lors_cli.quantization import rtn
from lors_cli.quantization.grid import Grid
from lors_cli.sparsity import mask, packed
from lors_cli.sparsity.packed import Stored
from lors_cli.sparsity.pattern import Pattern

GROUPS = (128, 64, 32)  # columns of a group: the first that divides all


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        linears: by the names of their shapes, a weight as numbers and the forms in which its codes are packed, if any.
        make: the whole dense model, which raises MemoryError if it does not fit.
        coded: the packed codes of a linear of that model; None where it has none.

    """

    linears: Mapping[str, tuple[Tensor, dict[str, Stored]]]
    make: Callable[[], nn.Module]
    coded: Callable[[str, nn.Linear], Stored | None]


def subject(
    name: str, pattern: Pattern | None, dtype: torch.dtype, device: torch.device, bits: int | None = None
) -> Subject:
    """A model, or random weights of its shape.

    Args:
        name: a named shape, a config.json, or what a config calls a model, packed or not.
        pattern: of the zeros in the random weights of a shape, 2:4 if there is none; a model has its own.
        dtype: of the weights, and of the scales.
        device: of the weights.
        bits: of the codes to which the random weights of a shape are rounded; a model has its own.

    Raises:
        RequestError: there is no such model or shape, or the model has too few zeros to be packed.

    """
    path = Path(name).expanduser()
    if name in SHAPES or path.suffix == ".json" or (path.is_dir() and not model_files.has_weights(path)):
        return _of_shape(read_shape(name, "--decode"), pattern or Pattern.parse("2:4"), dtype, bits, device)
    for key, given, own in (("--sparsity", pattern, "zeros"), ("--bits", bits, "weights")):
        if given:
            remedy = f"leave it out; the model has its own {own}"
            raise request_error(key, "a shape, whose weights are random", f"the model {name}", remedy)
    directory = source.complete(source.resolve(name, "--decode", packed=True))
    grid = quantized_files.grid_of(directory)
    model = (load_packed if grid or is_packed(directory) else load.load_model)(
        directory, tensors.dtype_name(dtype), device
    )
    coded: dict[str, Stored] = {}
    for place, module in list(model.named_modules()):
        if isinstance(module, PackedLinear) and module.scale is not None:
            coded[place] = module.stored
        if isinstance(module, PackedLinear | DenseLinear):
            model.set_submodule(place, _dense(module))
    every: dict[str, nn.Linear] = linears.all_linears(model.requires_grad_(False))
    worth = {n: one.weight for n, one in every.items() if n in coded or _is_smaller(one.weight)}
    if not worth:
        remedy = "prune or quantise it first, or name a shape, whose weights are random"
        raise request_error("--decode", "a model with zeros", f"{directory}, whose linears have too few", remedy)
    ways = {n: {f"int{grid.bits} {coded[n].layout}": coded[n]} if grid and n in coded else {} for n in worth}
    sizes = {f"{len(one)} x {one.shape[1]}": (one, ways[n]) for n, one in reversed(worth.items())}
    return Subject(sizes, lambda: model, lambda n, _: coded.get(n))


def _is_smaller(weight: Tensor) -> bool:
    return packed.packed_bytes(weight) < weight.nbytes


def _of_shape(config: Any, pattern: Pattern, dtype: torch.dtype, bits: int | None, device: torch.device) -> Subject:
    shape = Shape.of(config)
    sizes = dict.fromkeys(shape.linears("block"))
    if pattern.m and (odd := [columns for _, columns in sizes if columns % pattern.m]):
        got = f"{pattern} for {odd[0]} inputs"
        raise request_error("--sparsity", "an N:M whose M divides the inputs", got, "choose another")
    group = next((size for size in GROUPS if not any(columns % size for _, columns in sizes)), 0)
    if bits and not group:
        got = f"{min(columns for _, columns in sizes)} inputs"
        raise request_error("--bits", f"inputs that {GROUPS[-1]} divides", got, "leave it out")
    numbers = shape.blocks * sum(r * c for r, c in shape.linears("block")) + 2 * shape.vocabulary * shape.hidden
    torch.manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        kept = mask.keep_largest(torch.rand(rows, columns, device=device), pattern, per_row=True)
        return torch.randn(rows, columns, device=device).masked_fill_(~kept, 0).to(dtype)

    def make() -> nn.Module:
        needed = 3 * numbers * dtype.itemsize  # the dense weights, a copy of them, and packed ones
        free = memory.free(device)
        if needed > free:
            raise MemoryError(f"they need {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} are free")
        return build(config, "model", dtype, device, pattern).eval()

    def coded(weight: Tensor, layout: str | None = None) -> Stored:
        return codes.pack(rtn.quantize(weight, None, Grid(bits or 0, group), dtype), layout)

    def ways(weight: Tensor) -> dict[str, Stored]:
        found = {}
        for layout in packed.LAYOUTS if bits else ():
            with suppress(ValueError):  # it does not fit 2:4
                found[f"int{bits} {layout}"] = coded(weight, layout)
        return found

    weights = {f"{rows} x {columns}": random(rows, columns) for rows, columns in sizes}
    whole = {name: (weight, ways(weight)) for name, weight in weights.items()}
    return Subject(whole, make, lambda _, linear: coded(linear.weight) if bits else None)


def _dense(module: PackedLinear | DenseLinear) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    if isinstance(module, PackedLinear):
        linear.weight = nn.Parameter(module.dense_weight(), requires_grad=False)
    else:
        linear.weight = module.weight
    linear.bias = cast(Any, module.bias)
    return linear


def variants(base: Any, coded: Callable[[str, nn.Linear], Stored | None]) -> dict[str, Any]:
    """The dense model as it is, with dense products of our own, packed, and without its linears.

    They share what is not multiplied otherwise, and all but the first have the head of packed models. `coded` is that
    of the subject; what has no codes is packed as numbers.
    """

    def pack(name: str, linear: nn.Linear) -> nn.Module:
        if (stored := coded(name, linear)) is not None:
            return PackedLinear(linear, stored=stored)
        return PackedLinear(linear) if _is_smaller(linear.weight) else linear

    shared, models = {id(parameter): parameter for parameter in base.parameters()}, {"torch": base}
    kinds: dict[str, Callable[[str, nn.Linear], nn.Module]] = {
        "own dense": _own_dense,
        "packed": pack,
        "no linears": lambda _, linear: _Nothing(linear),
    }
    for way, kind in kinds.items():
        if way != "own dense" or (base.device.type == "cpu" and kernel.library()):
            models[way] = copy.deepcopy(base, dict(shared))
            speed_up_head(models[way])
            for name, linear in linears.all_linears(models[way]).items():
                models[way].set_submodule(name, kind(name, linear))
    return models


def _own_dense(_: str, linear: nn.Linear) -> nn.Module:
    """With a copy of the weight that lies where packed ones do, so that the comparison is of what is read."""
    made = DenseLinear(linear)
    made.weight = nn.Parameter(huge_pages.placed(linear.weight.detach()), requires_grad=False)
    return made


def read_bytes(model: Any) -> int:
    """The bytes of the weights that a token reads: all but the rows of the embedding that are not looked up."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is embedding.weight
    total: int = sum(p.nbytes for p in model.parameters())
    return total - (0 if tied else embedding.weight.nbytes)


class _Nothing(nn.Module):
    """A linear that takes no time, for what a token costs besides."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x.new_zeros(*x.shape[:-1], self.rows)

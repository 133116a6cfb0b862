"""What ``lors bench --decode`` measures: the weights of linears, and a model in several forms."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.artifacts import model_files, tensors
from lors_cli.artifacts.packed_model import is_packed
from lors_cli.benchmark.roofline import Shape
from lors_cli.benchmark.subject import SHAPES, build, read_shape
from lors_cli.errors import request_error
from lors_cli.kernels import packed as kernel
from lors_cli.models import linears, load, memory, source
from lors_cli.models.packed import load_packed
from lors_cli.sparsity import mask, packed
from lors_cli.sparsity.packed import Stored
from lors_cli.sparsity.pattern import Pattern

CPU = torch.device("cpu")
Subject: TypeAlias = tuple[dict[str, Tensor], Callable[[], nn.Module]]


def subject(name: str, pattern: Pattern | None, dtype: torch.dtype) -> Subject:
    """A weight for each shape of linear by the shape's name, and what makes the whole dense model.

    Args:
        name: a named shape, a config.json, or what a config calls a model, packed or not.
        pattern: of the zeros in the random weights of a shape, 2:4 if there is none; a model has its own.
        dtype: of the weights.

    Raises:
        RequestError: there is no such model or shape, or the model has too few zeros to be packed. What makes the model
            raises MemoryError if it does not fit.

    """
    path = Path(name).expanduser()
    if name in SHAPES or path.suffix == ".json" or (path.is_dir() and not model_files.has_weights(path)):
        return _of_shape(read_shape(name, "--decode"), pattern or Pattern.parse("2:4"), dtype)
    if pattern:
        remedy = "leave it out; the model has its own zeros"
        raise request_error("--sparsity", "a shape, whose weights are random", f"the model {name}", remedy)
    directory = source.complete(source.resolve(name, "--decode", packed=True))
    model = (load_packed if is_packed(directory) else load.load_model)(directory, tensors.dtype_name(dtype), CPU)
    for place, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(place, _dense(module))
    every = linears.all_linears(model.requires_grad_(False))
    worth = [one.weight for one in every.values() if packed.packed_bytes(one.weight) < one.weight.nbytes]
    if not worth:
        remedy = "prune it first, or name a shape, whose weights are random"
        raise request_error("--decode", "a model with zeros", f"{directory}, whose linears have too few", remedy)
    return {f"{len(one)} x {one.shape[1]}": one for one in reversed(worth)}, lambda: model


def _of_shape(config: Any, pattern: Pattern, dtype: torch.dtype) -> Subject:
    shape = Shape.of(config)
    sizes = dict.fromkeys(shape.linears("block"))
    if pattern.m and (odd := [columns for _, columns in sizes if columns % pattern.m]):
        got = f"{pattern} for {odd[0]} inputs"
        raise request_error("--sparsity", "an N:M whose M divides the inputs", got, "choose another")
    numbers = shape.blocks * sum(r * c for r, c in shape.linears("block")) + 2 * shape.vocabulary * shape.hidden
    torch.manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        kept = mask.keep_largest(torch.rand(rows, columns), pattern, per_row=True)
        return torch.randn(rows, columns).masked_fill_(~kept, 0).to(dtype)

    def make() -> nn.Module:
        needed, free = (
            2 * numbers * dtype.itemsize,
            memory.free_host(),
        )  # the dense weights, and packed ones beside them
        if needed > free:
            raise MemoryError(f"they need {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} are free")
        return build(config, "model", dtype, CPU, pattern).eval()

    return {f"{rows} x {columns}": random(rows, columns) for rows, columns in sizes}, make


def _dense(module: PackedLinear) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(module.dense_weight(), requires_grad=False), cast(Any, module.bias)
    return linear


def variants(base: Any) -> dict[str, Any]:
    """The dense model as it is, with dense products of our own, packed, and without its linears; they share weights."""
    shared, models = {id(parameter): parameter for parameter in base.parameters()}, {"torch": base}
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "own dense": _OwnDense,
        "packed": _pack,
        "no linears": _Nothing,
    }
    for way, kind in kinds.items():
        if way != "own dense" or kernel.library():
            models[way] = copy.deepcopy(base, dict(shared))
            for name, linear in linears.all_linears(models[way]).items():
                models[way].set_submodule(name, kind(linear))
    return models


def read_bytes(model: Any) -> int:
    """The bytes of the weights that a token reads: all but the rows of the embedding that are not looked up."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is embedding.weight
    total: int = sum(p.nbytes for p in model.parameters())
    return total - (0 if tied else embedding.weight.nbytes)


class _OwnDense(nn.Module):
    """A linear of the dense product of our own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``F.linear``."""
        return kernel.multiply(Stored(self.weight), (self.weight.shape[0], self.weight.shape[1]), x, self.bias)


class _Nothing(nn.Module):
    """A linear that takes no time, for what a token costs besides."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x.new_zeros(*x.shape[:-1], self.rows)


def _pack(linear: nn.Linear) -> nn.Module:
    return PackedLinear(linear) if packed.packed_bytes(linear.weight) < linear.weight.nbytes else linear

"""Quantised weights in a model directory: the ``pack-quantized`` form of compressed-tensors, written and read.

``config.json`` says that every linear which it does not ignore is quantised, and how; the files have four tensors, or
three, in place of its weight (`lors_cli.quantization.stored`). This is what transformers loads with the package
compressed-tensors, and what vLLM serves. Zeros are codes like others, so nothing is said about them.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import packed_model
from lors_cli.artifacts.files import read_object
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import PACKED, SCALE, SHAPE, ZERO_POINT, Quantized

KEY = "quantization_config"  # of config.json
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
DENSE = "use the model before quantisation"
# What may be said besides, because it changes no number: of the whole, of the linears, and of how codes were chosen.
_WHOLE = {"quantization_status": ("compressed",), "version": None, "ignore": None, "global_compression_ratio": None}
_GROUP = {"targets": (["Linear"],), "format": (FORMAT,)}
_WEIGHTS = {
    "observer": None,
    "observer_kwargs": None,
    "actorder": ("static", "weight"),
    "dynamic": (False,),
    "type": ("int",),
    "strategy": ("group",),
    "zp_dtype": ("torch.int8",),
}


def section(grid: Grid, ignored: Collection[str]) -> dict[str, Any]:
    """What config.json says of a model whose linears are quantised on `grid`, all but those that are `ignored`."""
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "strategy": "group"}
    weights |= {"group_size": grid.group_size, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(ignored),
    }


def grid_in(said: Any) -> Grid:
    """The grid of the linears of a model whose config.json has this as its `KEY`.

    Raises:
        ValueError: it is another form of quantisation than the one that is read here.

    """
    whole = _known(said, _WHOLE, ("quant_method", "format", "config_groups"), KEY)
    for key, wanted in (("quant_method", METHOD), ("format", FORMAT)):
        if whole[key] != wanted:
            raise ValueError(f"{key}: {wanted}, got {whole[key]!r}")
    groups = whole["config_groups"]
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ValueError(f"one group in config_groups, got {list(groups) if isinstance(groups, dict) else groups!r}")
    group = _known(next(iter(groups.values())), _GROUP, ("weights",), "config_groups")
    weights = _known(group["weights"], _WEIGHTS, ("num_bits", "group_size", "symmetric"), "weights")
    bits, size, symmetric = weights["num_bits"], weights["group_size"], weights["symmetric"]
    if type(bits) is not int or type(size) is not int or type(symmetric) is not bool:
        raise ValueError(f"num_bits, group_size and symmetric of their types, got {bits!r}, {size!r}, {symmetric!r}")
    if weights.get("type") != "int" or weights.get("strategy") != "group":
        got = f"{weights.get('type')!r}, {weights.get('strategy')!r}"
        raise ValueError(f"weights of type int and strategy group, got {got}")
    return Grid(bits, size, symmetric)


def _known(said: Any, known: dict[str, Any], needed: Collection[str], name: str) -> dict[str, Any]:
    """The object `said`, whose keys are those that are `needed` and those that are `known` to change nothing."""
    if not isinstance(said, dict):
        raise ValueError(f"{name} with keys and values, got {said!r}")
    if missing := [key for key in needed if said.get(key) is None]:
        raise ValueError(f"{missing[0]} in {name}, got none")
    for key, value in said.items():
        if value not in (None, {}, []) and key not in needed and (key not in known or _differs(value, known[key])):
            raise ValueError(f"{name} without {key}: {value!r}")
    return said


def _differs(value: Any, allowed: Collection[Any] | None) -> bool:
    return allowed is not None and value not in allowed


def of_config(config: dict[str, Any]) -> Grid | None:
    """The grid that config.json names; None where it says nothing about quantisation, or something else."""
    try:
        return grid_in(config.get(KEY))
    except ValueError:
        return None


def grid_of(directory: Path) -> Grid | None:
    """The grid of a quantised model directory; None if its weights are plain, or quantised otherwise."""
    try:
        return of_config(read_object(directory / "config.json"))
    except (OSError, ValueError):  # which is for those to say who need it
        return None


def files(path: Path, dtype: torch.dtype | None = None) -> TensorFiles:
    """The tensors of a model directory, also a packed one, or of a file: quantised weights as numbers in `dtype`.

    Raises:
        FilesError: as of the classes for these.

    """
    grid = grid_of(path)
    return QuantizedFiles(path, grid, dtype) if grid else packed_model.open_tensors(path)


def open_quantized(directory: Path, dtype: torch.dtype | None = None) -> "QuantizedFiles":
    """The tensors of a quantised model directory.

    Raises:
        FilesError: config.json says something else, or a file is missing or damaged.

    """
    try:
        grid = grid_in(read_object(directory / "config.json").get(KEY))
    except (OSError, ValueError) as error:
        raise FilesError(directory, f"is not quantised as lors reads it: {error}", DENSE) from None
    return QuantizedFiles(directory, grid, dtype)


class QuantizedFiles(TensorFiles):
    """The tensors of a quantised model: `layout` and `tensor` have each quantised weight as the numbers it stands for.

    Attributes:
        inner: the tensors as they are stored, or were before `lors pack` packed them.
        grid: of all quantised weights.
        linears: those that are quantised, by their names, and the bits of each weight with its share of scales.

    Raises:
        FilesError: as of `inner`; or what stands for a weight is not on the grid that config.json names.

    """

    def __init__(self, path: Path, grid: Grid, dtype: torch.dtype | None = None) -> None:
        self.inner = packed_model.open_tensors(path)
        self.path, self.shards, self.layout = path, self.inner.shards, dict(self.inner.layout)
        self.grid, self.dtype = grid, dtype
        self._parts = (PACKED, SCALE, SHAPE, *(() if grid.symmetric else (ZERO_POINT,)))
        self.linears: dict[str, float] = {}
        for linear in [name.removesuffix(f".{PACKED}") for name in self.layout if name.endswith(f".{PACKED}")]:
            shape, stored_dtype = self._check(linear)
            self.linears[linear] = stored.bits_per_weight(shape, grid, stored_dtype)
            for part in self._parts:
                self.layout.pop(f"{linear}.{part}", None)
            if f"{linear}.weight" in self.layout:
                raise self._edited(f"{linear}.weight beside {linear}.{PACKED}")
            self.layout[f"{linear}.weight"] = shape, dtype or stored_dtype
        if left := [name for name in self.layout if name.rpartition(".")[2] in (SCALE, ZERO_POINT, SHAPE)]:
            raise self._edited(f"{left[0]}, which belongs to no weight on {grid}")
        if not self.linears:
            raise self._edited(f"no {PACKED}")

    def _check(self, linear: str) -> tuple[tuple[int, int], torch.dtype]:
        """The shape of a weight and the dtype of its scales, from the headers and the few numbers of its shape."""
        scale = self.layout.get(f"{linear}.{SCALE}", ((), torch.float32))
        shape = self.inner.tensor(f"{linear}.{SHAPE}").tolist() if f"{linear}.{SHAPE}" in self.layout else []
        try:
            if len(shape) != 2:
                raise ValueError(f"{SHAPE} of two numbers, got {shape}")
            expected = stored.layout((shape[0], shape[1]), self.grid, scale[1])
        except ValueError as error:
            raise self._edited(f"{linear} with {error}") from None
        for part, form in expected.items():
            if (got := self.layout.get(f"{linear}.{part}")) != form:
                raise self._edited(f"{linear}.{part} as {got or 'nothing'}, where {form} belongs to {self.grid}")
        return (shape[0], shape[1]), scale[1]

    def quantized(self, linear: str) -> Quantized:
        """The quantised weight of a linear, in memory of its own.

        Raises:
            FilesError: what stands for it is not a quantised weight.

        """
        tensors = {part: self.inner.tensor(f"{linear}.{part}") for part in self._parts}
        try:
            return stored.from_tensors(tensors, self.grid)
        except ValueError as error:
            raise self._edited(f"{linear}: {error}") from None

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own; a quantised weight as numbers."""
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and linear in self.linears:
            return self.quantized(linear).weight(self.dtype)
        return self.inner.tensor(name)

    def _edited(self, found: str) -> FilesError:
        return FilesError(
            self.path, f"was edited or damaged: it has {found}", "quantise the model again, or copy it again"
        )

"""Models that are smaller than their config says: which attention groups and MLP channels each block has kept.

A group is a key/value head with its query heads. ``structure.json`` stands beside the weights; by it transformers' own
classes are given smaller linears, so any part of lors that builds a model through `load` understands such a directory.
Plain transformers refuses it, because the shapes differ, unless config.json has the true sizes
(`lors_cli.models.true_sizes`); ``structure.json`` then only says what was kept.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.artifacts import model_files, tensors
from lors_cli.errors import LorsError, request_error
from lors_cli.models.linears import find_blocks

NAME = model_files.STRUCTURE
# What the rows and the columns of each linear belong to.
ROWS = {"q_proj": "queries", "k_proj": "groups", "v_proj": "groups", "gate_proj": "channels", "up_proj": "channels"}
COLUMNS = {"o_proj": "queries", "down_proj": "channels"}
PLACES = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


@dataclass(frozen=True)
class Sizes:
    """What every block of the original has: groups, query heads in each, numbers in a head, MLP channels."""

    groups: int
    heads_per_group: int
    head_width: int
    channels: int


@dataclass(frozen=True)
class Kept:
    """What one block has kept, by the numbers in the original, in order."""

    groups: list[int]
    channels: list[int]


@dataclass(frozen=True)
class Structure:
    """A smaller model beside its original.

    Attributes:
        sizes: of the original's blocks.
        blocks: what each has kept.
        original: the digest of the original's directory.
        parameters: of the original, all of them.

    """

    sizes: Sizes
    blocks: list[Kept]
    original: str
    parameters: int

    @property
    def alike(self) -> Sizes | None:
        """What every block has kept, where all have kept as much; None where they differ."""
        counts = {(len(block.groups), len(block.channels)) for block in self.blocks}
        if len(counts) > 1:
            return None
        ((groups, channels),) = counts
        return replace(self.sizes, groups=groups, channels=channels)

    def rows(self, module: str) -> Tensor | None:
        """The rows of the original that the linear `module` has kept; None where it has all."""
        return self._kept(module, ROWS)

    def columns(self, module: str) -> Tensor | None:
        """The columns of the original that the linear `module` has kept; None where it has all."""
        return self._kept(module, COLUMNS)

    def _kept(self, module: str, kinds: dict[str, str]) -> Tensor | None:
        *parents, place = module.split(".")
        number = next((int(part) for part in reversed(parents) if part.isdigit()), None)
        if place not in kinds or number is None:
            return None
        kept, sizes = self.blocks[number], self.sizes
        if kinds[place] == "channels":
            return torch.tensor(kept.channels)
        width = sizes.head_width * (sizes.heads_per_group if kinds[place] == "queries" else 1)
        return (torch.tensor(kept.groups)[:, None] * width + torch.arange(width)).flatten()

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of the original's `tensor`, a weight (R, C) or a bias (R,), by its full name."""
        module, _, kind = name.rpartition(".")
        rows, columns = self.rows(module), self.columns(module)
        tensor = tensor if rows is None else tensor.index_select(0, rows.to(tensor.device))
        if columns is not None and kind == "weight":
            tensor = tensor.index_select(1, columns.to(tensor.device))
        return tensor

    def write(self, directory: Path) -> None:
        """Write ``structure.json``."""
        (directory / NAME).write_text(json.dumps(asdict(self)) + "\n")


def write_weights(original: Path, directory: Path, structure: Structure, dtype: torch.dtype) -> None:
    """Write what `structure` leaves of the model in `original` into `directory`, in files of the same names."""
    places, total = {}, 0
    shards = tensors.shards(original)
    for shard in shards:
        file = tensors.TensorFiles(shard)
        content = {name: structure.cut(name, file.tensor(name)).to(dtype) for name in file.layout}
        tensors.write(content, directory / shard.name)
        places.update(dict.fromkeys(content, shard.name))
        total += sum(tensor.nbytes for tensor in content.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / model_files.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    structure.write(directory)


def read(directory: Path) -> Structure | None:
    """The structure of a model directory, None where it has none.

    Raises:
        LorsError: its file is damaged.

    """
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        structure = Structure(
            Sizes(**content["sizes"]),
            [Kept(**block) for block in content["blocks"]],
            str(content["original"]),
            int(content["parameters"]),
        )
        for number, block in enumerate(structure.blocks):
            _check(block.groups, structure.sizes.groups, f"groups of block {number}")
            _check(block.channels, structure.sizes.channels, f"channels of block {number}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LorsError(f"{path} is damaged ({error}); copy it again from its source, or prune again") from None
    return structure


def _check(kept: list[int], count: int, what: str) -> None:
    in_order = all(isinstance(one, int) for one in kept) and kept == sorted(set(kept))
    if not kept or not in_order or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(f"the {what}: expected some of 0 to {count - 1}, each once, in order")


def sizes(model: Any, key: str) -> Sizes:
    """What the blocks of a (skeleton) model have.

    Raises:
        RequestError: they are not of Llama's form, or their heads do not divide into groups; `key` names the model.

    """
    config = model.config.get_text_config()
    prefix, blocks = find_blocks(model)
    heads = int(getattr(config, "num_attention_heads", 0))
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    expected = "a model of Llama's form: separate q, k, v, o, gate, up, down linears, heads that divide into groups"
    remedy = "use an unstructured method, or another model"
    if not groups or heads % groups:
        raise request_error(key, expected, f"{heads} query heads and {groups} key/value heads", remedy)
    shapes: dict[str, tuple[int, int]] = {}
    for number, block in enumerate(blocks):
        for place in PLACES:
            linear = _submodule(block, place)
            if not isinstance(linear, nn.Linear):
                raise request_error(key, expected, f"no linear {prefix}.{number}.{place}", remedy)
            if shapes.setdefault(place, (linear.out_features, linear.in_features)) != (
                linear.out_features,
                linear.in_features,
            ):
                raise request_error(key, "blocks of one shape", f"{prefix}.{number}.{place} of another shape", remedy)
    rows = shapes["self_attn.k_proj"][0]
    whole = Sizes(groups, heads // groups, rows // groups, shapes["mlp.gate_proj"][0])
    queries, width = heads * whole.head_width, shapes["self_attn.q_proj"][1]
    wanted = [(queries, width), (rows, width), (rows, width), (width, queries)]
    wanted += [(whole.channels, width), (whole.channels, width), (width, whole.channels)]
    for place, shape in zip(PLACES, wanted, strict=True):
        if shapes[place] != shape:
            raise request_error(key, expected, f"{place} of shape {shapes[place]}, not {shape}", remedy)
    return whole


def _submodule(block: nn.Module, name: str) -> nn.Module | None:
    try:
        return block.get_submodule(name)
    except AttributeError:
        return None


def shrink(model: Any, structure: Structure) -> None:
    """Give the blocks of a model of the original's shape linears of the kept size, with what is left of their numbers.

    One that has the kept sizes by its config stays as it is.

    Raises:
        LorsError: the structure is of a model with other blocks.

    """
    prefix, blocks = find_blocks(model)
    found = sizes(model, "model")
    if len(blocks) == len(structure.blocks) and found == structure.alike:
        model.lors_structure = structure
        return
    if len(blocks) != len(structure.blocks) or found != structure.sizes:
        raise LorsError(f"{NAME} belongs to another model than config.json: blocks differ in number or size")
    for number, block in enumerate(blocks):
        for place in PLACES:
            linear, name = block.get_submodule(place), f"{prefix}.{number}.{place}"
            parts = {kind: structure.cut(f"{name}.{kind}", tensor) for kind, tensor in linear.named_parameters()}
            weight = parts["weight"]
            smaller = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in parts, device="meta")
            for kind, tensor in parts.items():
                setattr(smaller, kind, nn.Parameter(tensor, requires_grad=False))
            block.set_submodule(place, smaller)
    model.lors_structure = structure


def of(model: Any) -> Structure | None:
    """The structure that `shrink` gave a model, None for a whole one."""
    structure: Structure | None = getattr(model, "lors_structure", None)
    return structure

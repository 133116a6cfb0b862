"""The decoder blocks of a causal language model and the linears in them, found by their form, not by their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lors_cli.errors import LorsError, nearest, request_error


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of decoder blocks: the first module list as long as the config says the model is deep.

    Raises:
        LorsError: there is no such list.

    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name, module
    raise LorsError(
        f"{type(model).__name__} without a list of {config.num_hidden_layers} decoder blocks is not supported"
    )


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linears of one block, by their name in it."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def head(model: Any) -> dict[str, nn.Linear]:
    """The linear that makes logits, by its name in the model; empty if there is none."""
    output = model.get_output_embeddings()
    return {
        name: module for name, module in model.named_modules() if module is output and isinstance(output, nn.Linear)
    }


def all_linears(model: nn.Module, *, asked: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """The linears of all blocks, by their name in the model; and the head, if its name is among those `asked` for.

    Raises:
        LorsError: the blocks hold none.

    """
    prefix, blocks = find_blocks(model)
    linears = {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }
    if not linears:
        raise LorsError(
            f"the blocks of {type(model).__name__} do not hold an nn.Linear: this architecture is not supported"
        )
    return linears | {name: linear for name, linear in head(model).items() if name in asked}


def shapes(model: nn.Module, *, asked: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
    """The rows and columns of the linears that `all_linears` finds, by their names; errors as there."""
    return {name: (linear.out_features, linear.in_features) for name, linear in all_linears(model, asked=asked).items()}


def by_block(names: list[str]) -> dict[str, list[str]]:
    """Names of linears, grouped by the block that they are in: by what comes up to the first number."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        blocks.setdefault(".".join(parts[: number + 1]), []).append(name)
    return blocks


# How configs count the experts of a mixture.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def refuse_experts(model: nn.Module, key: str) -> None:
    """Refuse a mixture of experts.

    Raises:
        RequestError: it is one. Its experts are 3-D tensors in transformers, not linears, and each sees only the
            tokens that the router sends it: a calibration of usual size leaves some with next to none.

    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    _, blocks = find_blocks(model)
    stacked = [name for name, parameter in blocks.named_parameters() if parameter.dim() > 2]
    count = max(getattr(config, name, None) or 1 for name in EXPERT_COUNTS)
    if count > 1 or stacked:
        got = f"{type(model).__name__}, a mixture of {count} experts" if count > 1 else f"3-D weights ({stacked[0]})"
        expected = "a dense model: experts are not linears, and each would see too few calibration tokens"
        raise request_error(key, expected, got, "prune a dense model")


def select(names: list[str], patterns: list[str] | None, key: str) -> list[str]:
    """The linears among `names` that a pattern matches: a whole name, its last parts, or a glob of the whole name.

    Raises:
        RequestError: a pattern matches none; `key` is the config's path to the patterns.

    """
    if patterns is None:
        return names
    matched = {p: {n for n in names if n == p or n.endswith(f".{p}") or fnmatchcase(n, p)} for p in patterns}
    for pattern, matches in matched.items():
        if not matches:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise request_error(key, "names that match a linear of the blocks", repr(pattern), nearest(pattern, leaves))
    chosen = set().union(*matched.values())
    return [name for name in names if name in chosen]

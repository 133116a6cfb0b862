"""The decoder blocks of a causal language model and the linears in them, found by their form, not by their names."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from lors_cli.errors import nearest, request_error
from lors_cli.models import tiny

NO_REMEDY = "docs/architectures.md lists the models that work"
# The names found by `find_blocks`: each step of a training asks for its model's, and a search may run a tiny model.
_FOUND: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of decoder blocks: the list of modules with weights in the decoder of the text.

    A vision or audio tower has such a list too, so where there are several a text tells them apart.

    Raises:
        RequestError: there is no such list, or it cannot be told which one it is.

    """
    if model in _FOUND:
        return _FOUND[model], cast(nn.ModuleList, model.get_submodule(_FOUND[model]))
    lists = _block_lists(model)
    if len(lists) > 1:
        run = _run_once_by_a_text(model)
        lists = {name: blocks for name, blocks in lists.items() if name in run}
    if len(lists) == 1:
        _FOUND[model], blocks = next(iter(lists.items()))
        return _FOUND[model], blocks
    got = f"{type(model).__name__}, " + (f"which has several: {', '.join(lists)}" if lists else "which has none")
    raise request_error(
        "model", "a model with one list of decoder blocks, each of which a text goes through once", got, NO_REMEDY
    )


def decoder(model: Any) -> Any:
    """The part of a model that turns token ids into the states that its head gets: what holds the blocks."""
    name, _ = find_blocks(model)
    parents = name.split(".")[:-1]
    for depth in range(len(parents), 0, -1):
        module = model.get_submodule(".".join(parents[:depth]))
        if isinstance(module, PreTrainedModel):
            return module
    return model.get_decoder()


def _block_lists(model: Any) -> dict[str, nn.ModuleList]:
    """The lists that may be the decoder blocks, by their name, outermost ones only."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside and all(map(_may_be_block, module)):
            lists[name] = module
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    own = {id(module) for module in text.modules()}
    return {name: blocks for name, blocks in lists.items() if id(blocks) in own} or lists


def _may_be_block(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(p.dim() > 1 for p in module.parameters())


@torch.no_grad()
def _run_once_by_a_text(model: Any) -> list[str]:
    """The lists in which a text goes through every module once, as the model in tiny form shows."""
    small = tiny.tiny(model)
    if small is None:
        return []
    calls: dict[str, Counter[int]] = {}
    for name, blocks in _block_lists(small).items():
        calls[name] = Counter()
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, seen=calls[name], number=number: seen.update([number]))
    small(input_ids=tiny.tokens(small, 1), use_cache=False)
    sizes = {name: len(small.get_submodule(name)) for name in calls}  # type: ignore[arg-type]
    return [name for name, seen in calls.items() if list(seen.values()) == [1] * sizes[name]]


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linears of one block (or of a list of them), by their name in it."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


@torch.no_grad()
def check_forward(model: nn.Module, key: str) -> None:
    """Refuse a model in tiny form that changes its weights as it runs, or whose linears do more than multiply and add.

    Raises:
        RequestError: a mask, or an adapter, on its weights would not do what it does on those of a linear.

    """
    if written := _written_by_forward(model):
        expected = "a model that only reads its weights, in training and in evaluation"
        raise request_error(key, expected, f"{type(model).__name__}, which writes into {written} as it runs", NO_REMEDY)
    _, blocks = find_blocks(model)
    for name, linear in block_linears(blocks).items():
        if type(linear) is nn.Linear:
            continue
        x = torch.randn(2, linear.in_features, generator=torch.Generator().manual_seed(0))
        if "weight" not in linear._parameters or not torch.allclose(
            linear(x), nn.functional.linear(x, linear.weight, linear.bias), rtol=1e-4, atol=1e-5
        ):
            kind, place = type(linear).__name__, name.partition(".")[2]
            expected = "linears that multiply their inputs with their weight as it is"
            raise request_error(key, expected, f"{type(model).__name__}, whose {place} is a {kind}", NO_REMEDY)


def _written_by_forward(model: Any) -> str | None:
    """A parameter that a forward changes in place, such as RWKV's, which divides weights for evaluation."""
    training = model.training
    before = {name: parameter._version for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            with suppress(Exception):  # the code of any model, some of which cannot be trained
                model.train(mode)(input_ids=tiny.tokens(model, 1), use_cache=False)
    model.train(training)
    return next((name for name, parameter in model.named_parameters() if parameter._version != before[name]), None)


def head(model: Any) -> dict[str, nn.Linear]:
    """The linear that makes logits, by its name in the model; empty if there is none."""
    output = model.get_output_embeddings()
    return {
        name: module for name, module in model.named_modules() if module is output and isinstance(output, nn.Linear)
    }


def all_linears(model: nn.Module, *, asked: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """The linears of all blocks, by their name in the model; and the head, if its name is among those `asked` for.

    Raises:
        RequestError: the blocks hold none.

    """
    prefix, blocks = find_blocks(model)
    linears = {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }
    if not linears:
        kinds = {type(m).__name__ for m in blocks.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))}
        got = f"{type(model).__name__}, whose blocks keep their weights in {', '.join(sorted(kinds))} instead"
        raise request_error("model", "a model whose blocks are made of nn.Linear", got, NO_REMEDY)
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


def check_prunable(model: nn.Module, key: str) -> None:
    """Refuse what pruning block by block does not fit, as far as the modules of a (skeleton) model show it.

    Raises:
        RequestError: it is a mixture of experts, or blocks share weights. Experts are 3-D tensors in transformers, not
            linears, and each sees only the tokens that the router sends it: a calibration of usual size leaves some
            with next to none. A shared weight would be pruned for one of the blocks only.

    """
    _, blocks = find_blocks(model)
    name, expected = type(model).__name__, "a dense model: experts see too few calibration tokens each, and as a rule"
    expected += " are not linears"
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    count = max(getattr(config, counted, None) or 1 for counted in EXPERT_COUNTS)
    if count > 1 and any("expert" in part.lower() for part, _ in blocks.named_modules()):
        raise request_error(key, expected, f"{name}, a mixture of {count} experts", "prune a dense model")
    if stacked := _stacked(blocks):
        raise request_error(key, expected, f"{name} with 3-D weights ({stacked})", "prune a dense model")
    if shared := _shared(blocks):
        expected = "blocks with weights of their own"
        raise request_error(key, expected, f"{name}, two of whose blocks share {shared}", NO_REMEDY)


def _stacked(blocks: nn.ModuleList) -> str | None:
    """A parameter that holds several matrices; the kernels of convolutions do not count."""
    for name, module in blocks.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) > 2 and not isinstance(module, _ConvNd):
                return f"{name}.{own}".lstrip(".")
    return None


def _shared(blocks: nn.ModuleList) -> str | None:
    """A parameter that is in two blocks."""
    owners: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            if owners.setdefault(id(parameter), number) != number:
                return name
    return None


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

"""Whether a model can be pruned block by block, tried out on a tiny model of the same code before any weight is read.

What is tried is what pruning relies on: a text goes once through each block, in their order; a block needs only the
states of the block before it and what the model calls it with; and its linears multiply what they are called with.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli.errors import LorsError, first_line, request_error
from lors_cli.models import linears, tiny
from lors_cli.sequential import replay
from lors_cli.sequential.gather import gather

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of the largest state; as a rule nothing differs at all


def skip_in_prune(places: list[str]) -> tuple[str, str]:
    """The key, and what is written there, by which pruning leaves the linears in these places dense."""
    return "prune.overrides", f"[{', '.join(f'{{match: {place}, skip: true}}' for place in places)}]"


@torch.no_grad()
def check(
    skeleton: PreTrainedModel,
    key: str,
    *,
    ranked: Collection[str],
    leave_out: Callable[[list[str]], tuple[str, str]] = skip_in_prune,
    linear_by_linear: bool = False,
    tuned: bool = False,
) -> None:
    """Refuse what pruning block by block would do wrong, or could not do at all.

    Args:
        skeleton: the model, whose weights are not read.
        key: where the config names it.
        ranked: the linears whose weights calibration will rank, by their full names.
        leave_out: the key, and what is written there, by which the linears in some places stay as they are.
        linear_by_linear: whether each linear is to see the pruned ones before it.
        tuned: whether gradients will be computed in each block.

    Raises:
        RequestError: see above; it says which part of the model does not fit.

    """
    model = tiny.tiny(skeleton)
    windows = {} if model is None else dict(enumerate(tiny.tokens(model, 2).split(1)))
    try:
        if model is None:
            raise ValueError("no sizes were found with which it can be made")
        expected, calls = _whole(model, windows)
    except Exception as error:  # the code of any model
        reason = _first_line(error)
        log.warning("%s cannot be tried out in tiny form first (%s)", type(skeleton).__name__, reason)
        return
    name = type(skeleton).__name__
    if mismatch := _mismatch(model, windows, expected, calls):
        needed = "blocks that need only the states of the block before them and what the model calls them with"
        raise request_error(key, needed, f"{name}: {mismatch}", linears.NO_REMEDY)
    linears.check_forward(model, key)
    places = Counter({place: sum(seen[place] for seen in calls) for seen in calls for place in seen})
    prefix, _ = linears.find_blocks(skeleton)
    wanted = {full: full.removeprefix(f"{prefix}.").partition(".")[2] for full in ranked}
    if idle := list(dict.fromkeys(place for place in wanted.values() if place in places and not places[place])):
        where, written = leave_out(idle)
        needed = "linears that a text calls, so that calibration can rank their weights"
        got = f"{name}, which does not call {', '.join(idle)}"
        raise request_error(where, needed, got, f"skip them: {where}: {written}")
    for full, place in wanted.items():
        if linear_by_linear and any(seen[place] > len(windows) for seen in calls):
            raise request_error(
                "prune.sequential", "block, where a linear is called twice", f"linear; {full}", "set it to block"
            )
    if tuned and (failure := _no_gradients(model, windows[0])):
        needed = "blocks in which gradients can be computed"
        raise request_error("prune.tune_blocks", needed, f"{name}: {failure}", "leave tune_blocks out")


def _whole(model: PreTrainedModel, windows: dict[int, Tensor]) -> tuple[list[list[Tensor]], list[Counter[str]]]:
    """The states that each block returns in the whole model, by window, and how often each linear of it is called."""
    _, blocks = linears.find_blocks(model)
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    calls = [Counter(dict.fromkeys(linears.block_linears(block), 0)) for block in blocks]
    handles = []
    for number, block in enumerate(blocks):
        handles.append(
            block.register_forward_hook(lambda *a, to=outputs[number]: to.append(replay.states_of(a[-1]).clone()))
        )
        for name, linear in linears.block_linears(block).items():
            handles.append(linear.register_forward_pre_hook(lambda *_, n=name, c=calls[number]: c.update([n])))
    try:
        for ids in windows.values():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, calls


def _mismatch(
    model: PreTrainedModel, windows: dict[int, Tensor], expected: list[list[Tensor]], called: list[Counter[str]]
) -> str | None:
    """How the blocks, run one by one, differ from the whole model; None where they do not."""
    prefix, blocks = linears.find_blocks(model)
    for number, seen in enumerate(expected):
        if len(seen) != len(windows):
            return f"a text goes {len(seen) / len(windows):g} times through {prefix}.{number}"
    states: dict[int, Tensor] = {}
    number = 0
    try:
        calls = replay.capture(model, windows, states.__setitem__)
        wanted = (1, windows[0].shape[1], model.config.get_text_config().hidden_size)
        for number, block in enumerate(blocks):
            if states[0].shape != wanted:
                return f"the states that enter {prefix}.{number} are of shape {tuple(states[0].shape)}, not {wanted}"
            run = partial(_run, calls, block, number, states)
            by_name = {name: linear for name, linear in linears.block_linears(block).items() if called[number][name]}
            gather(by_name, ["input_norm"], windows, run)
            states = {window: run(window) for window in windows}
            if not all(_close(states[window], expected[number][window]) for window in windows):
                return f"{prefix}.{number} gives other states when it is run by itself"
    except LorsError as error:
        return f"{prefix}.{number}: {error}"
    except Exception as error:  # the code of any model
        return f"{prefix}.{number} cannot be run by itself ({_first_line(error)})"
    return None


def _no_gradients(model: PreTrainedModel, ids: Tensor) -> str | None:
    """Why no gradients can be computed in the blocks, run one by one; None where they can."""
    prefix, blocks = linears.find_blocks(model)
    states: dict[int, Tensor] = {}
    calls = replay.capture(model, {0: ids}, states.__setitem__)
    for number, block in enumerate(blocks):
        parameters = list(block.requires_grad_(True).parameters())
        try:
            with torch.enable_grad():
                output = calls.run(block, number, 0, states[0].clone())
                torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)
        except Exception as error:  # the code of any model
            return f"{prefix}.{number}: {_first_line(error)}"
    return None


def _run(calls: replay.Calls, block: nn.Module, number: int, states: dict[int, Tensor], window: int) -> Tensor:
    return calls.run(block, number, window, states[window].clone())


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error, 'no message')}"

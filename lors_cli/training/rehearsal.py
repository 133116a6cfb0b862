"""Whether a training's adapters go into a model, tried out on a tiny model of the same code before it is loaded."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel

from lors_cli.adapters.replace import replace_linears
from lors_cli.adapters.vectors import train_vectors
from lors_cli.config.train import Train
from lors_cli.errors import first_line, request_error
from lors_cli.models import linears, tiny, vectors


def check(skeleton: PreTrainedModel, section: Train, names: Collection[str]) -> None:
    """Refuse linears that an adapter cannot stand in for.

    Args:
        skeleton: the model, whose weights are not read.
        section: how it will be trained.
        names: of the linears that are adapted.

    Raises:
        RequestError: the model does more with a linear than call it, or does not call it at all; or does not use what
            is to be trained beside the adapters.

    """
    model = tiny.tiny(skeleton)
    if model is None or not tiny.runs(model.train()):
        return
    key = f"{section.key}.target_modules"
    linears.check_forward(model, key)
    places = dict.fromkeys(map(_place, names))
    problem = _problem(model, section, places)
    if problem is None:
        if section.also:
            _check_vectors(tiny.tiny(skeleton), section, places)
        return
    bad = {place: found for place in places if (found := _problem(tiny.tiny(skeleton), section, [place]))}
    rest = [place for place in places if place not in bad]
    detail = "; ".join(f"{place} ({found})" for place, found in bad.items()) or problem
    raise request_error(
        key,
        "linears that the model calls, and whose inputs and outputs an adapter may keep",
        f"{type(skeleton).__name__} with an adapter on {detail}",
        f"leave them out: {key}: [{', '.join(rest)}]" if rest and bad else linears.NO_REMEDY,
    )


def _check_vectors(model: Any, section: Train, places: Collection[str]) -> None:
    """Refuse norms and biases that a training step of a tiny model gives no gradient; it is changed."""
    key, every = f"{section.key}.also", linears.all_linears(model, asked=places)
    names = [full for full in every if _place(full) in places]
    also = train_vectors(model, vectors.find(model, section.also, names, key))
    try:
        with torch.random.fork_rng(devices=[]):
            model.train()(input_ids=tiny.tokens(model, 1), use_cache=False).logits.sum().backward()
        idle = [name for name, vector in also.items() if vector.tensors()["value"].grad is None]
        problem = f"{idle[0]}, which it does not use" if idle else None
    except Exception as error:  # the code of any model
        problem = f"{type(error).__name__}: {first_line(error, 'no message')}"
    if problem:
        expected = "norms and biases that the model computes with as they are"
        raise request_error(key, expected, f"{type(model).__name__} with {problem}", f"train without {key}")


def _problem(model: Any, section: Train, places: Collection[str]) -> str | None:
    """What goes wrong in a training step with adapters at these places of the blocks; they are attached to `model`."""
    every = linears.all_linears(model, asked=places)
    chosen = [full for full in every if _place(full) in places]
    attached = replace_linears(model, chosen, section.computed.adapter, rank=1, alpha=1)
    called: set[str] = set()
    for full, adapter in attached.items():
        place = _place(full)
        adapter.register_forward_pre_hook(lambda *_, place=place: called.add(place))
    try:
        with torch.random.fork_rng(devices=[]):
            loss = model.train()(input_ids=tiny.tokens(model, 1), use_cache=False).logits.sum()
            if idle := sorted({_place(full) for full in attached} - called):
                return f"it does not call {', '.join(idle)}"
            loss.backward()
    except Exception as error:  # the code of any model
        return f"{type(error).__name__}: {first_line(error, 'no message')}"
    return None


def _place(full: str) -> str:
    """The name of a linear in its block; of one outside the blocks the whole."""
    block = linears.by_block([full])
    return full.removeprefix(f"{next(iter(block))}.")

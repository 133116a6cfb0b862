"""Whether the blocks of an architecture can lose attention groups and MLP channels, tried out on a tiny model of it.

The shapes of its linears do not tell: OLMo 2 normalises all heads together, and Diff Transformer pairs them. So the
smaller model has to compute what the whole one does when what the removed parts put out is zero.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from lors_cli.errors import first_line, request_error
from lors_cli.models import structure, tiny
from lors_cli.models.linears import find_blocks
from lors_cli.models.structure import COLUMNS, PLACES, Kept, Structure

TOLERANCE = 1e-4  # of the largest logit, as sums have another order


def trial(whole: PreTrainedModel) -> Structure:
    """What a trial leaves of a model: of more than one group all but the first, and every second channel.

    Raises:
        RequestError: as of `structure.sizes`.

    """
    sizes = structure.sizes(whole, "model")
    kept = Kept(list(range(min(1, sizes.groups - 1), sizes.groups)), list(range(1, sizes.channels, 2)))
    return Structure(sizes, [kept] * len(find_blocks(whole)[1]), "", 0)


@torch.no_grad()
def check(model: PreTrainedModel, key: str) -> None:
    """Refuse a (skeleton) model of an architecture whose parts cannot be removed; `key` is where the config names it.

    Raises:
        RequestError: see above.

    """
    whole = tiny.tiny(model)
    if whole is None or not tiny.runs(whole):
        return
    try:
        ids, left, smaller = tiny.tokens(whole, 2), trial(whole), copy.deepcopy(whole)
        structure.shrink(smaller, left)
        _silence(whole, left)
        got, expected = (one(input_ids=ids, use_cache=False).logits for one in (smaller, whole))
        wrong = bool((got - expected).abs().max() > TOLERANCE * expected.abs().max())
        reason = "which computes something else without them" if wrong else ""
    except Exception as error:  # the code of any model, in sizes that it was not made for
        reason = f"which does not run without them ({type(error).__name__}: {first_line(error, 'no message')})"
    if reason:
        expected_form = "an architecture whose attention groups and MLP channels work each by itself"
        remedy = "use an unstructured method, or another model"
        raise request_error(key, expected_form, f"{type(model).__name__}, {reason}", remedy)


def _silence(whole: PreTrainedModel, left: Structure) -> None:
    """Let the model be without what the parts that are not `left` put out."""
    prefix, blocks = find_blocks(whole)
    for number, block in enumerate(blocks):
        for place in PLACES:
            if place.rsplit(".", 1)[-1] in COLUMNS:
                weight: Any = block.get_submodule(place).weight
                gone = torch.ones(weight.shape[1], dtype=torch.bool)
                gone[left.columns(f"{prefix}.{number}.{place}")] = False
                weight.masked_fill_(gone, 0)

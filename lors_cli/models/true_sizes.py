"""Smaller models that plain transformers loads: all blocks are alike, and config.json says how large they are.

Whether an architecture takes its sizes from these keys, and from nothing else, is tried out: a tiny model of its code
is made smaller as `structure` does it, and built from a config with the kept sizes. Both have to compute the same bits.
"""

import copy
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lors_cli.artifacts.files import read_object
from lors_cli.models import parts, structure, tiny
from lors_cli.models.structure import Sizes, Structure

log = logging.getLogger(__name__)


def of(model: PreTrainedModel, smaller: Structure) -> dict[str, int] | None:
    """The sizes that make config.json one of the `smaller` model; None where no config says what its blocks are.

    Args:
        model: the (skeleton) original.
        smaller: what is left of it.

    """
    if smaller.alike is None:
        return None
    sizes = _keys(smaller.alike)
    if not sizes.keys() <= model.config.to_dict().keys():  # such as head_dim, which some derive from the others
        return None
    return sizes if _possible(model, sizes) and _decide(model) else None


def said(directory: Path, smaller: Structure) -> bool:
    """Whether the config.json of the `smaller` model in `directory` says its sizes."""
    config = read_object(directory / "config.json")
    return smaller.alike is not None and _keys(smaller.alike).items() <= config.items()


def _keys(sizes: Sizes) -> dict[str, int]:
    return {
        "num_attention_heads": sizes.groups * sizes.heads_per_group,
        "num_key_value_heads": sizes.groups,
        "head_dim": sizes.head_width,
        "intermediate_size": sizes.channels,
    }


def _possible(model: PreTrainedModel, sizes: dict[str, int]) -> bool:
    """Whether transformers builds a config of these sizes: Llama's heads, for one, have to divide the hidden size."""
    try:
        type(model.config).from_dict({**model.config.to_dict(), **sizes})
    except Exception as error:  # each config class checks in its own way
        log.info("transformers refuses a config of %s: %s", sizes, error)
        return False
    return True


@torch.no_grad()
def _decide(model: PreTrainedModel) -> bool:
    """Whether the sizes in a config decide on everything that becomes smaller."""
    shrunk = tiny.tiny(model)
    if shrunk is None:
        return False
    try:
        config, ids = copy.deepcopy(shrunk.config), tiny.tokens(shrunk, 2)
        smaller = parts.trial(shrunk)
        structure.shrink(shrunk, smaller)
        config.update(_keys(smaller.alike or smaller.sizes))
        built = type(shrunk)._from_config(config, dtype=torch.float32).eval()
        built.load_state_dict(shrunk.state_dict())
        return torch.equal(built(input_ids=ids).logits, shrunk(input_ids=ids).logits)
    except Exception as error:  # the code of any model, with sizes that it was not made for
        log.debug("%s with other sizes: %s: %s", type(model).__name__, type(error).__name__, error)
        return False

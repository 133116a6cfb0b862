"""The numbers in config.json, looked at before anything of their size is made.

transformers checks types and builds whatever it is told to, block by block. Numbers beyond those of any ordinary model
have to agree with the shapes in the files; whether the others do is found when the tensors are matched with the model.
"""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lors_cli.artifacts import model_files, packed_model
from lors_cli.errors import request_error

BLOCKS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?|labels)")  # transformers makes a name for each label
PARTS = re.compile(
    r"(num|n)_(\w+_)?(experts?|heads?)|n_(embd|inner)|d_\w+|(\w+_)?(hidden|intermediate|vocab)_size|(\w+_)?dim"
)
ROTATION = re.compile(r"(rope|rotary)_(\w+_)?(theta|base|freq)|factor")  # of positions, by which angles are divided
POSITIONS = re.compile(r"max_position_embeddings|n_positions|n_ctx|max_seq(uence)?_len(gth)?")
SHARE = re.compile(r"\w*(dropout|pdrop)(_\w+)?")
EPSILON = re.compile(r"(\w+_)?norm_eps(ilon)?")
# What no model needs beside its weights, such as tables of positions, in bytes; and positions for which it is seen to.
LARGEST_BUFFERS, ORDINARY_POSITIONS = 1 << 32, 1 << 13
# What no config needs to prove: more blocks, or wider tensors, make a model whose files are looked at first.
ORDINARY_BLOCKS, ORDINARY_WIDTH = 256, 1 << 19
LARGEST = 1 << 63
AGAIN = "copy config.json from the model again"


def check(config: dict[str, Any], directory: Path) -> None:
    """Refuse numbers that no model in `directory` can have; `config` is the content of config.json.

    Raises:
        RequestError: one is negative, not a number, or larger than the tensors in the files allow.

    """
    for where, key, value in _numbers(config):
        is_block, is_part = BLOCKS.fullmatch(key), PARTS.fullmatch(key)
        expected = None
        if isinstance(value, float) and math.isnan(value):
            expected = "a number"
        elif abs(value) >= LARGEST and not isinstance(value, float):
            expected = "a number of at most 63 bits"
        elif (EPSILON.fullmatch(key) or SHARE.fullmatch(key)) and not 0 <= value <= 1:
            expected = "a number from 0 to 1"
        elif (POSITIONS.fullmatch(key) and value < 1) or (ROTATION.fullmatch(key) and not 0 < value < math.inf):
            expected = "a positive number"
        elif isinstance(value, int) and (is_block or is_part):
            most = ORDINARY_BLOCKS if is_block else ORDINARY_WIDTH
            if value > most:
                most = _most(directory, blocks=bool(is_block), otherwise=most)
            if not 0 <= value <= most:
                expected = f"a number from 0 to {most}, as the files have it"
        if expected:
            shown = str(value) if isinstance(value, float) or abs(value) < LARGEST else "an integer of more bits"
            file = directory / "config.json"
            raise request_error(f"model: {where}", expected, shown, AGAIN, file)


def check_heads(config: Any, directory: Path) -> None:
    """Refuse a (text) config whose query heads cannot be shared out among its key/value heads.

    Raises:
        RequestError: they cannot.

    """
    heads, groups = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and (heads < 1 or groups < 1 or heads % groups):
        expected, got = "a divisor of num_attention_heads", f"{groups} for {heads} heads"
        remedy, file = AGAIN, directory / "config.json"
        raise request_error("model: num_key_value_heads", expected, got, remedy, file)


def head_width(config: Any) -> int:
    """Channels of an attention head, of a (text) config."""
    # not getattr, which fails where the width differs from block to block
    width: int = vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads
    return width


def check_buffers(config: Any, directory: Path, build: Callable[[], nn.Module]) -> None:
    """Refuse a (text) config whose positions make tables that fill the memory; `build` makes the model of it.

    Raises:
        RequestError: they do.

    """
    keys = {key: value for key, value in config.to_dict().items() if POSITIONS.fullmatch(key) and value}
    if max(keys.values(), default=0) <= ORDINARY_POSITIONS:
        return
    with torch.device("meta"):
        size = sum(buffer.nbytes for buffer in build().buffers())
    if size > LARGEST_BUFFERS:
        key = max(keys, key=keys.__getitem__)
        expected = f"positions whose tables fit into {LARGEST_BUFFERS >> 30} GiB"
        got = f"{keys[key]}, with {size >> 30:,} GiB"
        remedy, file = AGAIN, directory / "config.json"
        raise request_error(f"model: {key}", expected, got, remedy, file)


def _most(directory: Path, *, blocks: bool, otherwise: int) -> int:
    """The most blocks, each with a tensor of its own, or the widest part that the files have room for."""
    if not model_files.has_weights(directory):
        return otherwise
    shapes = [shape for shape, _ in packed_model.open_tensors(directory).layout.values()]
    return max(otherwise, len(shapes), 0 if blocks else max((side for shape in shapes for side in shape), default=0))


def _numbers(value: Any, where: str = "", key: str = "") -> Iterator[tuple[str, str, int | float]]:
    """Each number in an object, with its path and the key that it stands under."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, f"{where}.{name}" if where else name, name)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, where, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, key, value

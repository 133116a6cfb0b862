"""Whether a model keeps the documents of a packed example apart: found out by trying, not by its name.

A packed example tells documents apart by positions that restart (see `collate`). A model that gets its positions
otherwise, or carries a state from token to token, lets each document see the ones before it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli.data.example import Example
from lors_cli.data.packing import pack
from lors_cli.errors import request_error
from lors_cli.models import tiny
from lors_cli.training.collate import collate

LENGTHS = (9, 7, 5)  # of the documents that are tried; `pack` puts them in this order
SHARE = 1e-3  # of what a change in the document itself does, to count as a change


def check(skeleton: PreTrainedModel, key: str) -> bool:
    """Try the (skeleton) model in tiny form.

    Returns:
        whether that was possible; if not, the model itself is to be tried once it is loaded.

    Raises:
        RequestError: documents leak; `key` is that of the section.

    """
    model = tiny.tiny(skeleton)
    if model is None or not tiny.runs(model):
        return False
    refuse_leaks(model, key, type(skeleton).__name__)
    return True


def refuse_leaks(model: PreTrainedModel, key: str, name: str) -> None:
    """Refuse a model in which a packed document sees the others.

    Raises:
        RequestError: it does, or the model does not take positions.

    """
    if reason := leak(model):
        raise request_error(
            f"{key}.packing",
            "a model that keeps the documents of a packed example apart",
            f"{name}, in which {reason}",
            f"set {key}.packing: false",
        )


@torch.no_grad()
def leak(model: PreTrainedModel) -> str | None:
    """How a document in a packed example differs from the same one alone; None where it does not. Eval mode is kept."""
    training = model.training
    model.eval()
    try:
        return _leak(model)
    finally:
        model.train(training)


def _leak(model: PreTrainedModel) -> str | None:
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    first, *others = ([int(t) for t in torch.randint(size // 8, size // 2, (n,), generator=generator)] for n in LENGTHS)
    second = others[0]
    other_first = [size // 2 + token for token in range(len(first))]
    try:
        packed = _logits(model, [first, *others])
        changed = _logits(model, [other_first, *others])
        altered = _logits(model, [first, [second[0] + 1, *second[1:]], others[1]])
    except TypeError as error:
        return f"positions cannot be given ({error})"
    alone = [_logits(model, [document], packing=False) for document in (first, *others)]
    inside = [slice(sum(LENGTHS[:i]), sum(LENGTHS[: i + 1])) for i in range(len(LENGTHS))]
    last = inside[1].stop - 1  # where a document's first token is seen only through attention, or a state
    yardstick = float((packed[last] - altered[last]).abs().max())
    # the first comparison is of equal shapes, so nothing is rounded otherwise
    moved = max(float((packed[part] - changed[part]).abs().max()) for part in inside[1:])
    if not moved <= SHARE * yardstick:
        return f"a change in one document moves the logits of the next by {moved:.2g}"
    apart = max(float((packed[part] - one).abs().max()) for part, one in zip(inside, alone, strict=True))
    if not apart <= max(SHARE, 16 * torch.finfo(model.dtype).eps) * yardstick:
        return f"a document's logits in a packed example differ by {apart:.2g} from those alone"
    return None


def _logits(model: PreTrainedModel, documents: list[list[int]], *, packing: bool = True) -> Tensor:
    """The logits of one example (tokens, vocabulary), made of the batch that training would get."""
    examples: list[Example] = [{"input_ids": ids, "labels": ids} for ids in documents]
    batch: dict[str, Any] = collate(pack(examples, sum(LENGTHS)) if packing else examples, padding=0)
    del batch["labels"]
    logits: Tensor = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False).logits
    return logits[0].float()

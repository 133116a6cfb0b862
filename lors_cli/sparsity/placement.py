"""Whether the weights of a pruned linear stand where those of another linear, its original, stand.

What was kept tells it, also where pruning or training has changed it: its rows and columns point about where those of
the original point, if they are compared at the kept places. Rows or columns that were moved, as a permutation of
channels does, do not, and are found elsewhere in the original.
"""

import math

import torch
from torch import Tensor

ALIKE, SAME = 0.5, 0.99
ENOUGH = 16  # kept weights that a row or column must have to tell something
LOOKED_AT = 64  # rows or columns that are looked for elsewhere; those that are least alike


def difference(pruned: Tensor, original: Tensor) -> str | None:
    """What shows that the weights stand elsewhere; None if nothing does.

    Args:
        pruned: (R, C), zeros where weights were removed.
        original: (R, C).

    """
    kept, whole = pruned.float(), original.float()
    mask = kept != 0
    if int(mask.sum()) >= ENOUGH**2 and float(_cosine((kept * whole).sum(), kept.norm(), (whole * mask).norm())) < 0.1:
        return "weights that are not those of the original"
    for name, own, other in (("columns", kept.T, whole.T), ("rows", kept, whole)):
        if _moved(own, other):
            return f"{name} that the original has elsewhere"
    return None


def _moved(own: Tensor, other: Tensor) -> bool:
    """Whether a row of `own` (n, m) is one of `other` (n, m) at another place.

    By chance the cosine of k numbers is near 0, with a deviation of 1 / sqrt(k); five deviations are not chance.
    """
    mask = own != 0
    counts = mask.sum(1)
    alike = _cosine((own * other).sum(1), own.norm(dim=1), (other * mask).norm(dim=1))
    doubtful = ((alike < ALIKE) & (counts >= ENOUGH)).nonzero().flatten()
    doubtful = doubtful[alike[doubtful].argsort()[:LOOKED_AT]]
    if not len(doubtful):
        return False
    mine, bound = own[doubtful], [min(SAME, max(0.7, 5 / math.sqrt(count))) for count in counts[doubtful].tolist()]
    norms = (mask[doubtful].to(other.dtype) @ other.square().T).sqrt()
    found = _cosine(mine @ other.T, mine.norm(dim=1, keepdim=True), norms).amax(1)
    return bool((found > torch.tensor(bound)).any())


def _cosine(product: Tensor, norm: Tensor, other: Tensor) -> Tensor:
    return product / (norm * other).clamp_min(torch.finfo(product.dtype).tiny)

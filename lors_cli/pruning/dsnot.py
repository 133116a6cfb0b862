"""DSnoT: exchange removed for kept weights until the expected output of the row is what it was. No training.

Zhang et al. 2024, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", ICLR 2024, arXiv
2310.08915, Algorithm 1. With E_j the sum of input j over the tokens of a sample, averaged over the samples, a row's
expected error is ``delta = sum_j (dense_j - pruned_j) E_j``. One cycle, in each row by itself,

* grows the removed weight with the largest ``sign(delta) * dense_j E_j / Var(X_j) ** p``, which moves delta to zero;
* removes the kept weight with the smallest Wanda score ``abs(pruned_j) * norm(X_j)``: for a fraction among those with
  ``sign(delta) * pruned_j E_j < 0``, whose removal moves delta to zero too; for N:M, as the published code does,
  within the grown weight's group whatever its sign, and then only if delta keeps the sign that it had at first.

A row stops once abs(delta) is at the threshold. A weight that was exchanged is not exchanged back. For a fraction the
paper and the published defaults let delta change its sign, and the row then goes on from the other side.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from lors_cli.pruning.statistics import Moments
from lors_cli.sparsity.pattern import Pattern

CHUNK = 1 << 22  # weights handled at once: scores and sorting take some 50 bytes each, 200 MB


def repair(
    dense: Tensor,
    pruned: Tensor,
    statistic: Moments,
    pattern: Pattern,
    *,
    repair_cycles: int = 50,
    update_threshold: float = 0.1,
    var_power: float = 1.0,
) -> Tensor:
    """Exchange weights of `pruned`; a regrown one gets its value in `dense`, the others keep theirs.

    Each row, and for N:M each group, keeps its count of zeros. No row's abs(delta) ends larger than it was.

    Args:
        dense: (R, C), the weight before pruning.
        pruned: (R, C), what a pruning method made of it, in the same dtype; its support is the mask.
        statistic: norm, sum and variance of each input feature, (C,) each, float32.
        pattern: what `pruned` holds.
        repair_cycles: exchanges tried in each row.
        update_threshold: abs(delta) at which a row stops, in units of the outputs summed over a sample.
        var_power: p, what the variance is raised to; 0 leaves it out.

    Returns:
        (R, C), like `pruned`.

    """
    step = max(CHUNK // dense.shape[1], 1)
    return torch.cat(
        [
            _repair_rows(original, sparse, statistic, pattern.m, repair_cycles, update_threshold, var_power)
            for original, sparse in zip(dense.split(step), pruned.split(step), strict=True)
        ]
    )


def _repair_rows(
    dense: Tensor, pruned: Tensor, moments: Moments, m: int | None, max_cycles: int, threshold: float, var_power: float
) -> Tensor:
    gain = dense.to(moments.sum.dtype) * moments.sum  # what growing a weight takes off delta
    loss = pruned.to(moments.sum.dtype) * moments.sum  # what removing a weight adds to delta
    score = pruned.to(moments.norm.dtype).abs() * moments.norm
    kept = pruned != 0
    # Where gain is 0, as at an always-zero input, growing changes nothing, and 0 / Var = 0 / 0 would be NaN, which
    # sorts as the largest: the published code would grow it first.
    key = (gain / moments.variance**var_power).masked_fill(kept | (gain == 0), 0)
    # By the side of zero on which delta is: [0] where it is negative, [1] where it is positive.
    grow = torch.stack([_smallest(key, key < 0, max_cycles), _smallest(-key, key > 0, max_cycles)])
    drop = torch.stack([_smallest(score, loss > 0, max_cycles), _smallest(score, loss < 0, max_cycles)])
    spare = score.masked_fill(~kept, torch.inf)  # N:M: what a group can still remove

    result = pruned.clone()
    at_first = (gain - loss).sum(dim=1)
    delta = at_first.clone()
    turn = torch.zeros(2, len(dense), dtype=torch.long, device=dense.device)
    rows = torch.arange(len(dense), device=dense.device)  # those that go on
    for _ in range(max_cycles):
        rows = rows[delta[rows].abs() > threshold]
        side = (delta[rows] > 0).long()
        grown, removed = grow[side, rows, turn[side, rows]], drop[side, rows, turn[side, rows]]
        if m:
            removed = _smallest_in_group(spare, rows, grown, m)
            # The published code, its group used up, would take any weight of it and so lose count. Such a row goes on
            # with its next candidate.
            idle = (grown >= 0) & (removed < 0)
        else:
            idle = torch.zeros_like(rows, dtype=torch.bool)
        # -1: no candidate is left. The published code runs on into those of the other side and loses count.
        possible = (grown >= 0) & (removed >= 0)
        after = delta[rows] + loss[rows, removed] - gain[rows, grown]
        if m:
            possible &= after.sign() == at_first[rows].sign()
        turn[side, rows] += 1
        swapped = rows[possible]
        result[swapped, grown[possible]] = dense[swapped, grown[possible]]
        result[swapped, removed[possible]] = 0
        spare[swapped, removed[possible]] = torch.inf
        delta[swapped] = after[possible]
        rows = rows[possible | idle]
    # Delta may overshoot zero (a fraction), or a removed weight may outweigh the grown one (N:M). The published code
    # leaves such a row as it ends; one that ends worse than it began is better left as it was.
    worse = delta.abs() > at_first.abs()
    result[worse] = pruned[worse]
    return result


def _smallest(key: Tensor, wanted: Tensor, count: int) -> Tensor:
    """The columns of the `count` smallest keys (R, C) among the wanted, smallest first, filled up with -1.

    Returns:
        long (R, columns + 1), so that each row ends with a -1.

    """
    order = key.masked_fill(~wanted, torch.inf).sort(dim=1, stable=True).indices[:, :count]
    return pad(order.where(wanted.gather(1, order), -1), (0, 1), value=-1)


def _smallest_in_group(spare: Tensor, rows: Tensor, column: Tensor, m: int) -> Tensor:
    """The column with the smallest of `spare` (R, C) in the group of M around `column` (rows,); -1 if all are inf."""
    group = (column // m * m)[:, None] + torch.arange(m, device=spare.device)
    value, place = spare[rows[:, None], group].min(dim=1)
    return group.gather(1, place[:, None])[:, 0].where(value.isfinite(), -1)

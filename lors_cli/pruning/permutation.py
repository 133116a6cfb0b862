"""Channel permutation: an order of the inputs in which N:M keeps more of the score.

Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024,
their two steps. Heuristic allocation: the columns, sorted by summed score, are dealt over the M positions of the
groups, so that each group gets large and small ones. Linear sum assignment: for each of the M positions, the channels
at that position are given to the groups anew, in the best of all ways.

In the second step group g has M - 1 channels fixed. With t_gr the N-th largest of their scores in row r, a channel c
in the free place makes the group keep its N - 1 largest fixed scores and max(t_gr, s_cr). As max(a, b) is
(a + b + abs(a - b)) / 2 and every t and every s counts once whatever the assignment, the best assignment is the one
with the largest sum of L1 distances between t_g and s_c. Only these distances are computed: (C / M)^2 numbers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity.pattern import Pattern

CHUNK = 1 << 21  # scores handled at once; with what sorting them takes, less than 64 MB


def permutation(score: Tensor, pattern: Pattern) -> Tensor:
    """The order of the columns, long (C,): ``score[:, index]`` under N:M keeps at least as much as `score`.

    Args:
        score: (R, C), larger is more important, float32 or float64, finite; for several matrices that must share one
            order, their rows stacked.
        pattern: N:M, M a divisor of C.

    Returns:
        a permutation of ``0 .. C-1``; the identity if no better one was found.

    Raises:
        LorsError: `pattern` is not N:M, or its M does not divide C.

    """
    n, m = _group(score, pattern)
    unchanged = torch.arange(score.shape[1], device=score.device)
    index = _allocate(score, m)
    for position in range(m):
        index = _assign(score, index, position, n, m)
    better = retained(score, pattern, index) > retained(score, pattern, unchanged)
    return index if better else unchanged


def retained(score: Tensor, pattern: Pattern, index: Tensor) -> float:
    """The sum of the scores that N:M keeps of ``score[:, index]``; shapes and errors as in `permutation`."""
    n, m = _group(score, pattern)
    chunks = _chunks(score, index, m)
    return sum(float(chunk.topk(n, dim=2).values.sum(dtype=torch.float64)) for chunk in chunks)


def _group(score: Tensor, pattern: Pattern) -> tuple[int, int]:
    """N and M."""
    if pattern.n is None or pattern.m is None:
        raise LorsError(f"a channel permutation is for an N:M pattern, not for {pattern}")
    if score.shape[1] % pattern.m:
        raise LorsError(f"{pattern} does not fit {score.shape[1]} inputs, which is not a multiple of {pattern.m}")
    return pattern.n, pattern.m


def _allocate(score: Tensor, m: int) -> Tensor:
    """Deal the columns, by rising sum, over the positions: forwards to the first, backwards to the next, and so on."""
    dealt = score.sum(dim=0, dtype=torch.float64).sort(stable=True).indices.view(m, -1)
    dealt[1::2] = dealt[1::2].flip(1)
    return dealt.T.reshape(-1)


def _assign(score: Tensor, index: Tensor, position: int, n: int, m: int) -> Tensor:
    """`index` with the channels at `position` of each group of M exchanged in the best way."""
    from scipy.optimize import linear_sum_assignment  # only here: it takes a second to import

    groups = score.shape[1] // m
    distance = torch.zeros(groups, groups, dtype=torch.float64, device=score.device)
    for chunk in _chunks(score, index, m):
        fixed = torch.cat((chunk[:, :, :position], chunk[:, :, position + 1 :]), dim=2)
        threshold = fixed.topk(n, dim=2).values[:, :, -1]
        distance += torch.cdist(threshold.T, chunk[:, :, position].T, p=1)
    channels = torch.from_numpy(linear_sum_assignment(distance.cpu().numpy(), maximize=True)[1]).to(index.device)
    exchanged = index.view(groups, m).clone()
    exchanged[:, position] = exchanged[channels, position]
    return exchanged.view(-1)


def _chunks(score: Tensor, index: Tensor, m: int) -> Iterator[Tensor]:
    """``score[:, index]`` in groups, (rows, C / M, M), some rows at a time."""
    for rows in score.split(max(CHUNK // score.shape[1], 1)):
        yield rows[:, index].unflatten(1, (-1, m))

"""GPTQ: round weights one column after another, and let the columns that are left make up for each error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv
2210.17323, Algorithm 1. With H = 2 X^T X + lambda I and U the upper Cholesky factor of H^-1, columns are handled from
left to right: w_j becomes v_j on its group's grid, which leaves the error e = (w_j - v_j) / U_jj, and the columns k > j
of its row get ``w_k -= e * U_jk``. A group's grid is fitted to its weights as they are when its first column is
reached.

Masked: a weight that is zero stays zero through the whole solve. It takes no part of any error, and makes none itself,
because zero is a code of every grid.

``act_order`` takes the columns with the largest diagonal of H first, when there is most left to make up for them. The
groups stay those of the stored columns, so all grids are fitted before the first column ("static groups").
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid, Scales, codes_of, fit, values
from lors_cli.quantization.stored import Quantized
from lors_cli.sparsity import hessian
from lors_cli.sparsity.hessian import Factor

ROWS = 4096  # handled together: on a CPU more would not stay in its cache
WIDTH = 128  # columns after which their errors are carried to all columns on the right

# What is removed when a column of a block is reached: from the block's rows, the column, the weights of these rows as
# they are then (columns, R) and the pivots (columns,). Bool (some columns from there, R), or None for nothing new.
Removes = Callable[[slice, int, Tensor, Tensor], Tensor | None]


class Prepared(NamedTuple):
    """What the solve needs of a Hessian, shared by all linears with the same input."""

    factor: Factor  # of its columns in their order
    order: Tensor | None  # the columns as they are taken, (C,); None for left to right

    @property
    def damping(self) -> float:
        """Lambda as a fraction of the mean diagonal of H, as it was needed."""
        return self.factor.damping


def prepare(statistic: Tensor, *, act_order: bool = False, damping: float = 0.01) -> Prepared:
    """Factor the inverse of the Hessian `statistic`, (C, C), 2 X^T X up to a factor, which stays as it is.

    Raises:
        LorsError: no damping made the Hessian positive definite.

    """
    if not act_order:
        return Prepared(hessian.prepare(statistic, damping=damping), None)
    order = statistic.diag().argsort(descending=True, stable=True)
    return Prepared(hessian.prepare(statistic[order][:, order], damping=damping), order)


def quantize(
    weight: Tensor, statistic: Prepared, grid: Grid, dtype: torch.dtype, scales: Scales | None = None
) -> Quantized:
    """Quantise `weight` (R, C); what is zero in it stays zero.

    Args:
        weight: of any floating dtype.
        statistic: what `prepare` made of the Hessian.
        grid: its kind.
        dtype: that the scales are stored in.
        scales: where the grid lies, which stay as they are; fitted to the weight if left out.

    Raises:
        ValueError: the group size does not divide the columns.

    """
    (upper, dead, _), order = statistic
    work = weight.to(upper.dtype, copy=True)
    made, places = stored.room(work, grid, dtype), torch.arange(work.shape[1], device=work.device)
    if order is not None:
        work[:, order[dead]] = 0
    if order is not None or scales:
        made = Quantized(made.codes, *(scales or fit(work, grid, dtype)), grid)
    if order is not None:
        work, places = work[:, order], order
    work[:, dead] = 0  # the weights of features that are always zero do nothing
    kept, groups = work != 0, (places // grid.group_size).tolist()
    for start in range(0, work.shape[1], width := block_width(grid)):
        block, rest = slice(start, start + width), slice(start + width, None)
        made.codes[:, places[block]], errors = round_block(
            work[:, block],
            upper[block, block],
            made,
            groups[block],
            fits=not (scales or order is not None),
            kept=kept[:, block],
        )
        work[:, rest] -= (errors @ upper[block, rest]).mul_(kept[:, rest])
    return made


def block_width(grid: Grid, width: int = WIDTH) -> int:
    """About `width` columns, but whole groups: what is rounded before errors are carried on to all other columns."""
    return max(width // grid.group_size, 1) * grid.group_size


def round_block(
    weight: Tensor,
    factor: Tensor,
    made: Quantized,
    groups: list[int],
    *,
    fits: bool = True,
    kept: Tensor | None = None,
    removes: Removes | None = None,
) -> tuple[Tensor, Tensor]:
    """Round the columns of one block.

    Args:
        weight: (R, columns), float32 or float64.
        factor: (columns, columns), the upper factor of these columns.
        made: the whole weight, whose scales are put there, or are there.
        groups: which group each column belongs to.
        fits: whether a group's scales are fitted when it is reached; if not, they are there.
        kept: bool (R, columns), the weights that take part in the solve, if not all do; the others are zero.
        removes: chooses weights that become zero and leave their errors.

    Returns:
        the codes, int8, and the errors to be carried to the columns right of the block; both (R, columns).

    """
    grid, scales = made.grid, made.scales
    codes, errors = torch.empty_like(weight, dtype=torch.int8), torch.empty_like(weight)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        work = weight[rows].T.contiguous()  # the solve walks over columns, which are contiguous here
        taking = None if kept is None else kept[rows].T.contiguous()
        removed = torch.zeros_like(work, dtype=torch.bool)
        pivots, error, product = factor.diagonal(), torch.empty_like(work), torch.empty_like(work)
        for j, group in enumerate(groups):
            if removes and (more := removes(rows, j, work, pivots)) is not None:
                removed[j : j + len(more)] = more
            if fits and j % grid.group_size == 0:
                members = slice(j, j + grid.group_size)
                fitted = fit(work[members].masked_fill(removed[members], 0).T, grid, scales.scale.dtype)
                _put(scales, rows, group, fitted)
            at = _at(scales, rows, group)
            code = codes_of(work[j].masked_fill(removed[j], 0)[:, None], at, grid)
            codes[rows, j] = code[:, 0]
            torch.div(work[j] - values(code, at, work.dtype)[:, 0], pivots[j], out=error[j])
            change = torch.mul(factor[j, j + 1 :, None], error[j], out=product[j + 1 :])
            work[j + 1 :] -= change if taking is None else change.mul_(taking[j + 1 :])
        errors[rows] = error.T
    return codes, errors


def _at(scales: Scales, rows: slice, group: int) -> Scales:
    scale, zero_point = scales
    return Scales(scale[rows, group, None], None if zero_point is None else zero_point[rows, group, None])


def _put(scales: Scales, rows: slice, group: int, fitted: Scales) -> None:
    for whole, part in zip(scales, fitted, strict=True):
        if whole is not None and part is not None:
            whole[rows, group] = part[:, 0]

"""The rows of the pruning registries: what each kind of method has, and what its functions get and return.

A row names a module, which is imported when one of its functions is called. So reading the registry does not import
torch, and a mistake in a config is reported at once.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from lors_cli.options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lors_cli.pruning.least_squares import Fit
    from lors_cli.quantization.grid import Grid
    from lors_cli.quantization.stored import Quantized
    from lors_cli.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Row:
    """What every row has.

    `module` holds the functions. `options` are what a config may set; a function gets those that it declares as
    parameters. `statistic` is what calibration gathers, a key of `statistics.STATISTICS`.
    """

    module: str
    equation: str
    paper: str
    options: type[Options] = Options
    statistic: str | None = None

    functions: ClassVar[tuple[str, ...]] = ()  # that it calls; those of `optional` need not be there
    optional: ClassVar[tuple[str, ...]] = ()

    def mistake(self, elsewhere: Collection[str], *, scores: bool) -> str | None:
        """What is wrong with the row, so that it is not found out in the middle of a calibration; None if nothing is.

        Args:
            elsewhere: options that are not for the functions of its module.
            scores: whether the module must have a `score`.

        """
        try:
            module = import_module(self.module)
            known = import_module("lors_cli.pruning.statistics").STATISTICS
        except ImportError as error:
            return f"the module {self.module}, which cannot be imported: {error}"
        functions = {name: one for name, one in vars(module).items() if callable(one) and name in self.functions}
        needed = [name for name in self.functions if name not in self.optional or (scores and name == "score")]
        if missing := [name for name in needed if name not in functions]:
            return f"{self.module}, which has no function {missing[0]}"
        taken = {name for function in functions.values() for name in signature(function).parameters}
        if idle := [name for name in self.options.model_fields if name not in taken and name not in elsewhere]:
            return f"the option {idle[0]}, which no function of {self.module} takes"
        if self.statistic is not None and self.statistic not in known:
            return f"the statistic {self.statistic!r}, which is none of {', '.join(known)}"
        return None

    def _function(self, name: str) -> Callable[..., Any] | None:
        return getattr(import_module(self.module), name, None)

    def _call(self, name: str, *arguments: Any, options: Options) -> Any:
        function = self._function(name)
        if function is None:
            raise AttributeError(f"{self.module} has no function {name!r}")
        parameters = signature(function).parameters
        return function(*arguments, **{option: value for option, value in options if option in parameters})


@dataclass(frozen=True)
class Method(Row):
    """A method that leaves zeros: ``prune(weight, statistic, pattern, **options) -> weight`` in its module.

    Its module may also have ``prepare(statistic, **options)``, what all linears with one input share, whose result
    `prune` then gets as its statistic; and ``score(weight, statistic, **options)``, the importance of each weight,
    which a method with `PermuteOptions` needs.

    `rounds`: its module has ``prune_and_round(weight, statistic, pattern, grid, dtype, **options) -> Quantized`` too,
    which rounds the kept weights in the same solve.
    `stacks`: the method prunes to N:M row by row, so that the linears of one input can be pruned as one matrix.
    `reads_mask`: in place of a statistic, `prune` gets a mask (R, C) that was made elsewhere.
    """

    functions: ClassVar[tuple[str, ...]] = ("prune", "prepare", "score", "prune_and_round")
    optional: ClassVar[tuple[str, ...]] = ("prepare", "score", "prune_and_round")
    rounds: bool = False
    stacks: bool = False
    reads_mask: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether calibration gathers a statistic for it."""
        return self.statistic is not None

    def prepare(self, statistic: Any, options: Options) -> Any:
        """What `prune` needs of the `statistic` of one input; the statistic itself if the method has no `prepare`."""
        return self._call("prepare", statistic, options=options) if self._function("prepare") else statistic

    def prune(self, weight: "Tensor", statistic: Any, pattern: "Pattern | None", options: Options) -> "Tensor":
        """The pruned weight, (R, C) like `weight`; `pattern` is None where a mask alone says what stays."""
        pruned: Tensor = self._call("prune", weight, statistic, pattern, options=options)
        return pruned

    def prune_and_round(
        self, weight: "Tensor", statistic: Any, pattern: "Pattern", grid: "Grid", options: Options
    ) -> "Quantized":
        """The pruned weight on a grid, with scales in the dtype of `weight`."""
        dtype = weight.dtype
        rounded: Quantized = self._call("prune_and_round", weight, statistic, pattern, grid, dtype, options=options)
        return rounded

    def score(self, weight: "Tensor", statistic: "Tensor", options: Options) -> "Tensor":
        """The importance of each weight, (R, C), larger is kept."""
        score: Tensor = self._call("score", weight, statistic, options=options)
        return score


@dataclass(frozen=True)
class StructuredMethod(Row):
    """A method that chooses which parts of a block stay: ``keep(members, count, left, generator, **options)``.

    See `structured.Member` and `keep` below. `needs_gradients`: of the loss on calibration text in the weights.
    """

    functions: ClassVar[tuple[str, ...]] = ("keep",)
    needs_gradients: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.needs_gradients

    def keep(
        self, members: Sequence[Any], count: int, left: int, generator: "torch.Generator", options: Options
    ) -> list[int]:
        """The numbers, rising, of the `left` parts that stay of the `count` that the `members` consist of."""
        kept: list[int] = self._call("keep", members, count, left, generator, options=options)
        return kept


@dataclass(frozen=True)
class Profile(Row):
    """A way to give blocks different sparsities: `share` measures each dense block, `spread` says what each gets."""

    functions: ClassVar[tuple[str, ...]] = ("share", "spread")

    def share(self, weights: "Sequence[Tensor]", statistics: Sequence[Any], options: Options) -> float:
        """What is measured in a block: the `weights` of its linears, each with the statistic of its input."""
        share: float = self._call("share", weights, statistics, options=options)
        return share

    def spread(self, shares: list[float], sizes: list[int], sparsity: float, options: Options) -> list[float]:
        """The sparsity of each block; `sizes` are the weights in it that follow the profile."""
        sparsities: list[float] = self._call("spread", shares, sizes, sparsity, options=options)
        return sparsities


@dataclass(frozen=True)
class Repair(Row):
    """What is done to a pruned weight afterwards: ``repair(dense, pruned, statistic, pattern, **options)``."""

    functions: ClassVar[tuple[str, ...]] = ("repair",)

    def repair(
        self, dense: "Tensor", pruned: "Tensor", statistic: Any, pattern: "Pattern", options: Options
    ) -> "Tensor":
        """The repaired weight, (R, C), which holds `pattern` as `pruned` does."""
        repaired: Tensor = self._call("repair", dense, pruned, statistic, pattern, options=options)
        return repaired


@dataclass(frozen=True)
class Update(Row):
    """How kept weights are changed once all zeros are chosen.

    Its module has ``update(dense, pruned, statistic, tokens, **options)``; `tokens` is how many the statistic has seen.
    """

    functions: ClassVar[tuple[str, ...]] = ("update",)

    def update(self, dense: "Tensor", pruned: "Tensor", statistic: Any, tokens: int, options: Options) -> "Fit":
        """The updated weight, (R, C), with the support of `pruned`, and what the update came to."""
        fit: Fit = self._call("update", dense, pruned, statistic, tokens, options=options)
        return fit

"""How many times smaller a model is, as LoRAM counts it (Zhang et al. 2025, arXiv 2502.13533, section 4.1).

The paper's ratio is one of parameters. Its main text (tables 1 to 4) counts a weight in NF4 as half a parameter, and
what stays in 16 bits, such as the embeddings and the head, as whole ones. Weights that are zero but stored count as
removed: the triangles of its tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from lors_cli.models import linears


@dataclass(frozen=True)
class Counts:
    """Parameters.

    Attributes:
        before: of the original, all of them.
        after: of those, the ones that are left.
        in_linears: of those, the ones in the linears of the blocks, which `train.base: nf4` rounds.

    """

    before: int
    after: int
    in_linears: int

    @classmethod
    def of(cls, skeleton: PreTrainedModel, left: Mapping[str, float] | None = None) -> "Counts":
        """Those of a (skeleton) model, and of its linears the shares that are `left`, by their names; else all."""
        before = sum(parameter.numel() for parameter in skeleton.parameters())
        sizes = {name: rows * columns for name, (rows, columns) in linears.shapes(skeleton).items()}
        kept = sum(round(size * (left or {}).get(name, 1.0)) for name, size in sizes.items())
        return cls(before, before - sum(sizes.values()) + kept, kept)

    @property
    def factor(self) -> float:
        """How many parameters the original has for each one that is left."""
        return self.before / self.after

    @property
    def factor_nf4(self) -> float:
        """The same with the linears of the blocks in NF4."""
        return self.before / (self.after - self.in_linears / 2)

    def summary(self) -> str:
        """Before and after in one line of text."""
        return f"{_short(self.before)} -> {_short(self.after)} parameters ({self.factor:.2f}x, exactly {self.after:,})"

    def summary_nf4(self) -> str:
        """The ratio in four bits."""
        return f"in NF4 {self.factor_nf4:.2f}x, where LoRAM counts a weight of the blocks' linears as half a parameter"


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"

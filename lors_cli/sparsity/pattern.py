"""Where zeros may stand: anywhere (a fraction of zeros) or N:M (at most N nonzeros in every M consecutive inputs).

`mask.holds` checks whether a weight holds a pattern, and `mask.keep_largest` makes a mask that does.
"""

import re
from dataclasses import dataclass

EXPECTED = 'a fraction of zeros between 0 and 1 (0.5), or "N:M" with 0 < N < M: at most N nonzeros in M inputs ("2:4")'


@dataclass(frozen=True)
class Pattern:
    """An unstructured pattern (``n`` and ``m`` are None) or N:M, where N counts the **kept** of M consecutive inputs.

    The public codes of Wanda and SparseGPT count the removed ones; the two readings agree only at N = M/2.
    """

    sparsity: float
    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, value: object) -> "Pattern":
        """Read ``0.5`` or ``"2:4"``.

        Raises ValueError for anything else, with `EXPECTED` as the message.
        """
        text = str(value).strip()
        if match := re.fullmatch(r"(\d+):(\d+)", text):
            n, m = int(match[1]), int(match[2])
            if 0 < n < m:
                return cls(sparsity=1 - n / m, n=n, m=m)
            raise ValueError(EXPECTED)
        try:
            sparsity = float(text)
        except ValueError:
            raise ValueError(EXPECTED) from None
        if isinstance(value, bool) or not 0 < sparsity < 1:
            raise ValueError(EXPECTED)
        return cls(sparsity=sparsity)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.sparsity:g}"

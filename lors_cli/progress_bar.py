"""The line at the bottom of a terminal that says how far a piece of work is, and messages above it.

The share, the time that is left and the first words about the last step are always there; what else is said about it
is shown where it fits, and no word is cut.
"""

import textwrap
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

BAR = 10  # columns
NARROW_BAR = 6
REFRESHES = 4  # a second


class ProgressBar:
    """The line itself, which rich draws again and again.

    Args:
        label: what is done.
        total: steps, of which `done` were done before.
        done: steps.
        counted: whether steps are worth showing; else the first words about the last step say where it is.

    """

    def __init__(self, label: str, total: int, done: int, *, counted: bool) -> None:
        self.label, self.total, self.done, self.counted = label, total, done, counted
        self.parts: tuple[str, ...] = ()
        self._before, self._started = done, time.monotonic()
        self._last = self._started

    def advance(self, parts: tuple[str, ...], steps: int) -> None:
        """Note that `steps` more are done, and the words about them."""
        self.parts = tuple(part for part in parts if part) or self.parts
        if steps:
            self.done, self._last = self.done + steps, time.monotonic()

    def left(self) -> float | None:
        """The seconds that are left, at the mean speed so far; None before the first step."""
        if self.done == self._before:
            return None
        each = (self._last - self._started) / (self.done - self._before)
        return max(each * (self.total - self.done) - (time.monotonic() - self._last), 0.0)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        width = options.max_width
        first, *others = self.parts or ("",)
        head = f"{self.label} {self.done}/{self.total}" if self.counted else self.label
        share = self.done / self.total if self.total else 1.0
        numbers = f"{min(int(100 * share), 100):3d}% {clock(self.left())} left"
        always = len(head) + 1 + len(numbers) + 1
        bar = BAR if always + BAR + 1 + len(first) <= width else NARROW_BAR
        room = width - always - bar - 1
        said = first
        for part in others:
            said += f", {part}" if len(said) + 2 + len(part) <= room else ""
        line = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(4):
            line.add_column(no_wrap=True, overflow="ellipsis")
        drawn: Any = Bar(total=max(self.total, 1), completed=self.done, width=bar)
        if bar + always + 1 + len(first) > width:  # so narrow that the bar, and then the words, have to go
            line.add_row(Text(head), Text(numbers), Text(first if always + 1 + len(first) <= width else ""))
        else:
            line.add_row(Text(head), drawn, Text(numbers), Text(said))
        yield line


def clock(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def wrapped(text: str, width: int) -> str:
    """The lines of a text broken between words; a command in backquotes and a long path stay whole, to be copied."""
    lines = []
    for line in text.splitlines():
        if len(line) <= width or line.startswith("|"):  # of a table
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        quoted = "`".join(
            part.replace(" ", "\0") if number % 2 else part for number, part in enumerate(line.split("`"))
        )
        lines += textwrap.wrap(quoted, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def terminal_width(stream: TextIO) -> int:
    """The columns of a terminal."""
    from rich.console import Console

    return Console(file=stream).width

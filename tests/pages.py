"""The blocks of code on the pages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOUND = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*.md"), *(ROOT / "configs").rglob("*.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(FOUND)]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One fenced block, the line at which it begins, and why it is not run, if its page says so in a comment."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(name, line, found["language"], found["text"], found["reason"])

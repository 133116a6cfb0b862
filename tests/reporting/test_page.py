import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from lors_cli.reporting import page, palette
from lors_cli.reporting.table import Table
from lors_cli.tools.report import collect


class Page(HTMLParser):
    """Collects the tags of a page, their attributes, and the text of its table's cells."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_the_page_is_complete_asks_for_nothing_and_is_the_same_each_time(runs: Path) -> None:
    content = page.render(collect([runs]))
    assert content == page.render(collect([runs]))
    assert "http" not in re.sub("http-equiv", "", content)
    shown = Page(content)
    assert not {"script", "link", "img", "iframe", "image", "object", "base"} & set(shown.tags)
    assert not {"src", "srcset", "onload", "onclick", "action"} & {name for name, _ in shown.attributes}
    references = [value for name, value in shown.attributes if name in ("href", "xlink:href")]
    assert references
    assert all((value or "").startswith("#") for value in references)
    assert "url(" not in content.replace("url(#", "")
    pictures = re.findall(r'<svg role="img" aria-label="([^"]+)"[^>]*><title>([^<]+)</title><desc>', content)
    assert len(pictures) == content.count("<svg") > 3
    assert all(label.startswith(f"{title}. ") for label, title in pictures)
    dark = content[content.index("@media (prefers-color-scheme: dark)") :]
    light = re.findall(r"(--\w+): #", content[: content.index("@media")])
    assert set(light) <= set(re.findall(r"(--\w+): #", dark)), "every colour of the page has one in the dark"
    outside = re.sub(r"<svg.*?</svg>", "", content[: content.index("</style>")], flags=re.DOTALL)
    assert set(re.findall(r"(?:color|background): (#\w+)", outside)) == set(), "colours have names"
    assert palette.INK not in content[content.index("<body>") :], "words and axes are in the page's own colour"
    assert "currentColor" in content
    titles = re.findall('<h3>([^<]*)</h3><div class="wide" tabindex="0"><svg', content)
    assert titles == [
        *("Loss", "Accuracy, llama-7b", "Sparsity per module"),
        "Perplexity against memory",
    ]
    assert shown.tags.count("details") == 5
    assert 'method: "wanda"' in unescape(content)
    assert "lors train config.yaml" in content
    assert str(runs / "edited") in content


def test_names_cannot_break_out_of_the_page(evil: Table) -> None:
    content = page.render(evil)
    shown = Page(content)
    assert "script" not in shown.tags
    assert shown.tags.count("title") == 1 + content.count("<svg")
    assert any("<script>alert('x')</script>" in cell for row in shown.rows for cell in row)
    assert len({len(row) for row in shown.rows}) == 1
    assert "\x1b" not in content

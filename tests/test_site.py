"""The site of mkdocs.yml is built from the pages; every link in it leads somewhere, and every page is in its menu."""

import html
import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is built: a link or a heading that does not exist is an error, because the build is strict."""
    directory = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(directory)))
    return directory


def text(page: Path) -> str:
    """What a reader sees of a page outside of code."""
    shown = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", shown))


def test_pages_show_no_markdown(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        left = re.findall(r"^\s*\|.*\|\s*$|^\s*[*-] \w.*$|\]\(|\*\*", text(page), re.MULTILINE)
        assert not left, f"{page.relative_to(site)}: {left[:3]}"


def test_the_reference_is_that_of_the_code(site: Path) -> None:
    commands, python = (site / f"reference/{name}/index.html" for name in ("commands", "python"))
    assert "lors prune" in commands.read_text()
    assert "--dry-run" in commands.read_text()
    assert "start_from_gradient" in text(python)


def test_every_page_of_docs_is_in_the_menu() -> None:
    def listed(entries: Any) -> set[str]:
        values = entries.values() if isinstance(entries, dict) else entries
        return {entries} if isinstance(entries, str) else {name for entry in values for name in listed(entry)}

    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs <= listed(load_config(str(ROOT / "mkdocs.yml"))["nav"])


def test_the_pictures_of_the_concepts_are_those_of_their_script(tmp_path: Path) -> None:
    def words(folder: Path) -> dict[str, list[str]]:
        tag = "{http://www.w3.org/2000/svg}text"
        return {p.name: [t.text or "" for t in ElementTree.parse(p).iter(tag)] for p in sorted(folder.glob("*.svg"))}  # noqa: S314

    runpy.run_path(str(ROOT / "scripts/draw_concepts.py"))["main"](tmp_path)
    assert words(tmp_path) == words(ROOT / "docs/concepts"), "run: python scripts/draw_concepts.py"

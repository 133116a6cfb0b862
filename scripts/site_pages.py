"""Hooks of mkdocs.yml: the pages that the repository has elsewhere than in docs, and those made from the code.

The README is the first page. A link of a page out of docs leads to a copy of that file below ``repository``, and a link
to a folder to a list of its files, so that the site is whole without a network. Commands and the Python interface are
written from their own help.
"""

import os
import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from lors_cli import api
from lors_cli.cli import app

ROOT = Path(__file__).parents[1]
NAMES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
}  # where pages outside of docs go by a name of their own
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, what pages link to outside of docs, and the reference."""
    todo = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *map(Path, (p.abs_src_path for p in files.documentation_pages())),
    ]
    seen = set()
    for source in todo:
        if source not in seen:
            seen.add(source)
            if files.get_file_from_path(uri(source)) is None:
                files.append(_file(source, config))
            if source.is_dir():
                todo += listed(source)
            elif source.suffix == ".md":
                todo += [path for path in links(source) if not path.is_relative_to(ROOT / "docs")]
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/python.md", content=python()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where their targets are on the site."""
    source = page.file.abs_src_path and Path(page.file.abs_src_path)
    if not source:  # written here
        return markdown

    def lead(link: re.Match[str]) -> str:
        target = os.path.relpath(uri((source.parent / link[2]).resolve()), Path(page.file.src_uri).parent)
        return f"{link[1]}{target}{link[3] or ''})"

    return LINK.sub(lead, markdown)


def links(page: Path) -> list[Path]:
    """What a page links to in the repository."""
    return [(page.parent / link[2]).resolve() for link in LINK.finditer(page.read_text())]


def listed(folder: Path) -> list[Path]:
    """The files of a folder that has no page of its own."""
    return [] if (folder / "README.md").is_file() else sorted(path for path in folder.iterdir() if path.is_file())


def uri(path: Path) -> str:
    """Where a file or folder of the repository is on the site, as its source."""
    if path.is_dir():
        path /= "README.md" if (path / "README.md").is_file() else "index.md"
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    inside = path.relative_to(ROOT).as_posix().removeprefix(".")  # MkDocs leaves out what begins with a dot
    return NAMES.get(inside, f"repository/{inside}")


def commands() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    with group.make_context("lors", [], resilient_parsing=True) as context:
        return get_docs_for_click(obj=group, ctx=context, name="lors", title="Commands")


def python() -> str:
    """What other people's code calls."""
    names = [
        "lors_cli.api." + name for name, one in vars(api).items() if getattr(one, "__module__", "") == api.__name__
    ]
    public = [name for name in names if not name.split(".")[-1].startswith("_")]
    return "# Python\n\n" + "".join(f"::: {name}\n\n" for name in public)


def _file(source: Path, config: MkDocsConfig) -> File:
    if source.is_dir() and (files := listed(source)):
        rows = "".join(f"* [{path.name}]({path.name})\n" for path in files)
        return File.generated(config, uri(source), content=f"# {source.relative_to(ROOT)}\n\n{rows}")
    page = source / "README.md" if source.is_dir() else source
    return File.generated(config, uri(source), abs_src_path=str(page))

"""``lors report``: many runs -> one table, with tests of the differences, in the format that is asked for."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lors_cli.artifacts import files
from lors_cli.errors import Problem, RequestError, nearest, request_error
from lors_cli.reporting import notes, rows, runs
from lors_cli.reporting.runs import LeftOut, Manifests, Run
from lors_cli.reporting.table import Table, build
from lors_cli.run import manifest

log = logging.getLogger(__name__)

SUFFIXES = {"terminal": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex", "json": ".json", "html": ".html"}
STEM = "report"
MISSHAPEN = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # what values of wrong types raise
DAMAGED = "what it says of a model's origin is not in the report; copy it again, or make it again with --force"


def report(
    arguments: list[Path],
    *,
    kind: str | None = None,
    output: Path | None = None,
    over_seeds: bool = False,
    strict: bool = False,
    width: int | None = None,
) -> str:
    """Report on all runs that are, or lie below, the arguments.

    Args:
        arguments: run directories and folders of them.
        kind: a format; that of the output's suffix if left out, else terminal.
        output: a file to write, or without a suffix a directory for all formats but the terminal's.
        over_seeds: whether runs that differ by the seed alone become one line.
        strict: whether anything that has to be left out is an error.
        width: of the terminal; None where the result does not go to one.

    Returns:
        what to print: the report, or the paths of what was written.

    Raises:
        RequestError: there is nothing to report, or not all of it and `strict`; or the output cannot be.
        LorsError: the output could not be written.

    """
    kinds = _kinds(kind, output)
    table = collect(arguments, over_seeds=over_seeds, strict=strict)
    for text in notes.left_out(table):
        log.warning("left out: %s", text)
    if output is None:
        return _render(table, kinds[0], width).rstrip("\n")
    several = len(kinds) > 1
    paths = [output / f"{STEM}{SUFFIXES[one]}" if several else output for one in kinds]
    texts = [_render(table, one, None) for one in kinds]
    _prepare(paths)
    for path, text in zip(paths, texts, strict=True):
        files.write_text(path, text)
    return "\n".join(map(str, paths))


def collect(arguments: list[Path], *, over_seeds: bool = False, strict: bool = False) -> Table:
    """The table of all runs that are, or lie below, the arguments.

    Raises:
        RequestError: there is none, or something has to be left out and `strict`.

    """
    manifests = Manifests()
    directories, left = runs.find(arguments)
    read = [runs.read(directory, manifests) for directory in directories]
    usable = [one for one in read if not isinstance(one, LeftOut)]
    try:
        every, models_left = rows.of_runs(usable, manifests)
    except MISSHAPEN:
        strange = [one for run in usable if (one := _strange(run, manifests))]
        usable = [run for run in usable if run.directory not in {one.path for one in strange}]
        every, models_left = rows.of_runs(usable, manifests)
        left += strange
    used = {row.origin.manifests[stage].digest for row in every for stage in row.origin.manifests}
    left += [one for one in read if isinstance(one, LeftOut) and not _only_serves(one.path, used, manifests)]
    left += models_left
    told = {one.reason for one in left}
    # the same place under two names is said once, under the first
    damaged = {place.resolve(): (place, why) for place, why in reversed(manifests.damaged.items())}
    left += [LeftOut(place, why, DAMAGED) for place, why in damaged.values() if why not in told]
    if left and (strict or not every):
        more = ", or leave out --strict" if every else ""
        raise RequestError(
            *(
                Problem("RUN_DIR", "a run to report on", f"{', '.join(map(str, paths))}: {reason}", remedy + more)
                for reason, remedy, paths in runs.by_reason(left)
            )
        )
    if not every:
        raise request_error("RUN_DIR", "at least one evaluated model", "none", "run `lors eval`")
    return build(every, left, over_seeds=over_seeds)


def _strange(run: Run, manifests: Manifests) -> LeftOut | None:
    """A run whose values are not of the types that lors writes, which only a seal tells, and old manifests have none.

    Each is tried alone, because in a table of several nobody would know whose they are.
    """
    try:
        rows.of_runs([run], manifests)
    except MISSHAPEN as error:
        files = f"{run.directory}/*/{manifest.NAME}"
        reason = f"one of {files} or its results are not as lors writes them: {type(error).__name__}: {error}"
        return LeftOut(run.directory, reason, "make what was edited again with --force")
    return None


def _only_serves(directory: Path, used: set[str], manifests: Manifests) -> bool:
    """Whether all there is in a run directory without an evaluation is what reported models were made from."""
    if (directory / runs.EVAL).exists():
        return False
    made = [manifests.of(directory / name) for name in runs.OUTPUTS if (directory / name).is_dir()]
    return bool(made) and all(content is not None and content.digest in used for content in made)


def _kinds(kind: str | None, output: Path | None) -> list[str]:
    """The formats that are asked for.

    Raises:
        RequestError: there is no such format.

    """
    if kind is not None:
        if kind not in SUFFIXES:
            raise request_error("--format", f"one of {', '.join(SUFFIXES)}", kind, nearest(kind, list(SUFFIXES)))
        return [kind]
    if output is None:
        return ["terminal"]
    if not output.suffix or output.is_dir():
        return [one for one in SUFFIXES if one != "terminal"]
    for one, suffix in SUFFIXES.items():
        if output.suffix == suffix:
            return [one]
    known = ", ".join(SUFFIXES.values())
    raise request_error("--output", f"a file that ends in {known}, or a directory", output, "or name a --format")


def _prepare(paths: list[Path]) -> None:
    """Make the directory of the output, which is all of what it takes.

    Raises:
        RequestError: it cannot be made, or would change what a stage wrote.

    """
    parent = paths[0].parent
    if (parent / manifest.NAME).is_file():
        got = f"{paths[0]}, in a directory that lors made"
        raise request_error(
            "--output", "a place of its own", got, "name a file elsewhere, because this would change a result"
        )
    for path in paths:
        if path.is_dir():
            raise request_error("--output", "a file", f"{path}, a directory", "name another one")
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise request_error("--output", "a directory that can be made", error, "name another one") from None


def _render(table: Table, kind: str, width: int | None) -> str:
    from lors_cli.reporting import export, terminal, text

    if kind == "html":
        from lors_cli.reporting import page  # matplotlib takes a second to import

        return page.render(table)
    if kind == "terminal":
        return text.plain(table) if width is None else terminal.render(table, width)
    renderers: dict[str, Callable[[Any], str]] = {
        "markdown": text.markdown,
        "csv": export.as_csv,
        "latex": text.latex,
        "json": export.as_json,
    }
    return renderers[kind](table)

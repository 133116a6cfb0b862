"""What is in a box, without what differs from one run to the next: times, speeds and peaks of memory."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

# In JSON files, at any depth: how long something took, when it was, how much memory the process had; and by what a sum
# was computed, which a training says at its start and again when it goes on. Everything else has to be the same.
OF_THE_PROCESS = {
    *("seconds", "created", "tokens_per_second", "estimated_bytes", "peak_memory", "numerics"),
    *("seal", "files"),  # digests of these, and of files that are compared themselves
    *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
    *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
}
# A log tells what happened, and that was something else.
LOGS = {"lors.log"}
LOCKS = {".lock"}

Contents = dict[str, bytes]


def read(root: Path) -> Contents:
    """The files below `root` by their paths, and its directories by their paths with a slash."""
    found: Contents = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir():
            found[name + "/"] = b""
        elif path.name not in LOCKS:
            found[name] = b"" if path.name in LOGS else _without_times(path)
    return found


def _without_times(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix in (".json", ".jsonl"):
        texts = content.splitlines() if path.suffix == ".jsonl" else [content]
        try:
            return "\n".join(json.dumps(_timeless(json.loads(text))) for text in texts).encode()
        except ValueError:
            return content
    return _without_column(content.decode(), "seconds").encode() if path.suffix == ".md" else content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in OF_THE_PROCESS}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _without_column(text: str, header: str) -> str:
    """A Markdown text without the cells below `header` in its tables."""
    column, lines = None, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if header in cells:
            column = cells.index(header)
        if len(cells) == 1:
            column = None
        lines.append(line if column is None else "|".join(cells[:column] + cells[column + 1 :]))
    return "\n".join(lines)


def differences(found: Contents, expected: Contents) -> list[str]:
    """What is missing, too much, or other than expected."""
    return [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is left over" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} differs" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]),
    ]


def incomplete(found: Contents, before: Contents, after: Contents) -> list[str]:
    """What has a final name though it is neither as it was before the command nor as the command makes it.

    A published directory is looked at as a whole. Names that begin with a dot or end in ``.new`` are not final.
    """
    places = sorted({*published(found), *published(before), *published(after)})
    wrong = [
        f"{place} is neither the old one nor the new one"
        for place in places
        if (now := _below(found, place)) and now not in (_below(before, place), _below(after, place))
    ]
    for name, content in found.items():
        if hidden(name) or name.endswith("/") or any(name.startswith(place) for place in places):
            continue
        if content not in (before.get(name), after.get(name)):
            wrong.append(f"{name} is neither the old one nor the new one")
    return wrong


def published(contents: Contents) -> set[str]:
    """The directories with a manifest or a model's config, each with a slash."""
    return {
        name.removesuffix(end)
        for name in contents
        for end in ("lors.json", "config.json")
        if re.search(rf"/{re.escape(end)}$", name) and not hidden(name)
    }


def _below(contents: Contents, place: str) -> Contents:
    return {name: content for name, content in contents.items() if name.startswith(place) and name != place}


def hidden(name: str) -> bool:
    return name.endswith(".new") or any(part.startswith(".") for part in name.split("/"))


def kind_of(path: str) -> str:
    """The name of a file without what is drawn or counted in it."""
    name = re.sub(r"tmp\w{8}|\.mode-\w{8}", "*", "/".join(path.split("/")[-2:]))
    return re.sub(r"\d+", "*", name)

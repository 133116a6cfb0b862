"""What rows are called: by their methods, and where that is not enough, by the settings in which they differ."""

import os
from collections import defaultdict
from typing import Any

from lors_cli.reporting.provenance import DENSE, OTHER, PRUNED, TUNED
from lors_cli.reporting.rows import Row, settings, share
from lors_cli.run import manifest

DEFAULT_INIT = {"lors": "gradient"}  # random for the others
MOST = 4  # settings in a name
DERIVED = ("calibration_tokens", "digest", "data.")  # follow from others


def clean(text: str) -> str:
    """The text in one line, without characters that a terminal would act upon."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def pruning(row: Row) -> str:
    """What pruned the model that a row is of or began with."""
    found = row.origin.prune
    if not found:
        return {DENSE: "", OTHER: "other models"}.get(row.kind, "" if row.origin.unpruned else "pruned elsewhere")
    words = [f"{found.get('method') or '?'} {share(found['ratio']) if found.get('ratio') else ''}".strip()]
    words += [str(found[key]) for key in ("profile", "repair") if found.get(key)]
    words += [key for key in ("variant", "permute") if found.get(key)]
    words += ["overrides"] if found.get("overrides") else []
    return clean(" + ".join(words))


def goal(row: Row) -> str:
    """The sparsity that was asked for: of a pruned or tuned model the one that its group has."""
    if row.kind in (DENSE, OTHER) or row.origin.unpruned:
        return ""
    found = row.origin.prune or {}
    asked = found.get("ratio") if found.get("sparsity") is None else found["sparsity"]
    try:
        return share(row.sparsity if asked is None else float(asked))
    except ValueError:
        return clean(str(asked))


def method(row: Row) -> str:
    """The row's name among those of its group."""
    if row.kind == DENSE:
        return "dense"
    origin = row.origin
    model = ", ".join(filter(None, (pruning(row), "aligned" if origin.align is not None else "")))
    if row.kind == PRUNED:
        return model
    if row.kind != TUNED:
        return clean(row.name.rstrip("/").rpartition("/")[2])
    train, merge = origin.train or {}, origin.merge or {}
    name = str(train.get("method") or merge.get("method") or "tuned")
    if merge.get("apply_mask"):
        name += "*"  # as the SPP paper calls it
    words = [name]
    filled = merge.get("dense") and not (origin.target or origin.unpruned or (origin.prune or {}).get("ratio"))
    words += ["merged densely"] if filled else []
    rank = train.get("rank") or merge.get("rank")
    words += [f"r={rank}"] if rank else []
    init = train.get("init")
    words += [f"init={init}"] if init and init != DEFAULT_INIT.get(name, "random") else []
    words += [f"on {'the dense model' if origin.unpruned else origin.target}"] if origin.target else []
    return clean(" + ".join(filter(None, (model, " ".join(words)))))


def of(rows: list[Row], ignoring: tuple[str, ...] = ()) -> list[str]:
    """A name for each row of a group; equal ones get the settings that tell them apart, else their runs.

    Args:
        rows: of one group.
        ignoring: settings that are no reason to tell rows apart.

    """
    names = [method(row) for row in rows]
    alike: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        alike[name].append(number)
    for numbers in alike.values():
        if len(numbers) > 1:
            for number, words in zip(numbers, _differences([rows[n] for n in numbers], ignoring), strict=True):
                names[number] = clean(f"{names[number]} {words}")
    doubles = {name for name in names if names.count(name) > 1}
    top = os.path.commonpath([row.runs[0].directory.absolute() for row in rows]) if doubles else ""
    for number, row in enumerate(rows):
        if names[number] in doubles:
            place = os.path.relpath(row.runs[0].directory.absolute(), top)
            names[number] = clean(f"{names[number]} [{row.runs[0].directory.name if place == '.' else place}]")
    return names


def _differences(rows: list[Row], ignoring: tuple[str, ...]) -> list[str]:
    """For each row the settings in which they differ, as far as all rows have them; the last parts of their keys."""
    flat = [manifest.flat(settings(row)) for row in rows]
    common = [key for key in flat[0] if all(key in one for one in flat)]
    keys = [key for key in common if len({str(one[key]) for one in flat}) > 1]
    keys = [key for key in keys if not any(word in key for word in DERIVED)]
    keys = [key for key in keys if key.rpartition(".")[2] not in ignoring][:MOST]
    words = [[f"{key.rpartition('.')[2]}={_short(one[key])}" for key in keys] for one in flat]
    return [" ".join(dict.fromkeys(one)) for one in words]  # a seed of pruning that is the training's too, once


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", ".", "~")) else text

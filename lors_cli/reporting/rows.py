"""One row for each model of each run, and what it is called: by its methods, and by the settings that tell it apart.

A model that several runs measured alike is one row.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from lors_cli.adapters import MASKED
from lors_cli.reporting import columns
from lors_cli.reporting.columns import Column, Measure
from lors_cli.reporting.origin import DENSE, OTHER, PRUNED, TUNED, Cost, Origin, costs, evaluated_digest, trace
from lors_cli.reporting.runs import LeftOut, Manifests, Run
from lors_cli.run import manifest
from lors_cli.run.facts import Merged, Pruned

ORDER = (DENSE, PRUNED, OTHER, TUNED)
DEFAULT_INIT = {"lors": "gradient"}  # random for the others
MOST = 4  # settings in a name
DERIVED = ("calibration_tokens", "digest", "data.")  # settings that follow from others


@dataclass
class Row:
    """A model that was evaluated.

    Attributes:
        name: what its evaluation calls it.
        digest: of it, when it was evaluated.
        sparsity: measured then.
        runs: those that measured it; the first is the one that it is of.
        measures: by column.

    """

    name: str
    digest: str | None
    sparsity: float
    origin: Origin
    runs: list[Run]
    measures: dict[Column, Measure]
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Dense, pruned, tuned or other."""
        return self.origin.kind

    @property
    def dense(self) -> tuple[str, str]:
        """The model at the beginning: its name and its digest, as far as that is known."""
        return self.origin.dense, self.origin.dense_digest or ""

    @property
    def pattern(self) -> str:
        """N:M where its manifest proves that, else the share of zeros."""
        facts = self.origin.made and self.origin.made.facts
        pattern = facts.pattern if isinstance(facts, Pruned | Merged) else None
        return pattern if pattern and ":" in pattern else share(self.sparsity)


def of_runs(runs: list[Run], manifests: Manifests) -> tuple[list[Row], list[LeftOut]]:
    """The rows of the runs, in their order, and the models that are left out."""
    rows: list[Row] = []
    left: list[LeftOut] = []
    for run in runs:
        for name, results in run.results["models"].items():
            origin = trace(run, name, manifests)
            if isinstance(origin, LeftOut):
                left.append(origin)
                continue
            digest, measures = evaluated_digest(run, name), columns.of_model(run, name)
            notes = [*origin.notes, *columns.remarks(run, name)]
            row = Row(name, digest, results["sparsity"], origin, [run], measures, notes=notes)
            if not _join(rows, row):
                rows.append(row)
    _name_dense(rows)
    _adopt(rows)
    for row in rows:
        row.cost = costs(row.origin)
    return rows, left


def _join(rows: list[Row], row: Row) -> bool:
    """Join the row with the one of the same model, if there is one and no number of theirs differs."""
    for other in rows:
        if other.digest is None or other.digest != row.digest or other.kind != row.kind:
            continue
        if row.kind == TUNED and other.origin.directory != row.origin.directory:
            continue  # a training that was repeated, and took its own time
        common = other.measures.keys() & row.measures.keys()
        if any(other.measures[column].value != row.measures[column].value for column in common):
            text = "the same model, measured in the same way, has other numbers in {}"
            other.notes.append(text.format(row.runs[0].directory))
            row.notes.append(text.format(other.runs[0].directory))
            continue
        other.measures |= {column: measure for column, measure in row.measures.items() if column not in common}
        other.runs += row.runs
        other.notes += [note for note in row.notes if note not in other.notes]
        return True
    return False


def _name_dense(rows: list[Row]) -> None:
    """One name for each dense model and one model for each name, as far as digests tell."""
    names: dict[str, list[str]] = {}
    for row in rows:
        name, digest = row.dense
        known = names.setdefault(name, [])
        if digest and digest not in known:
            known.append(digest)
    taken = {digest: name for name, digests in reversed(names.items()) for digest in digests}
    for row in rows:
        name, digest = row.dense
        if not digest and len(names[name]) == 1:
            row.origin.dense_digest = digest = names[name][0]
        name = taken.get(digest, name)
        row.origin.dense = f"{name} ({digest[:8]})" if digest and len(names[name]) > 1 else name


def _adopt(rows: list[Row]) -> None:
    """A model from elsewhere that adapters were trained for is their pruned model."""
    parents = {row.origin.pruned_digest: row for row in rows if row.origin.pruned_digest}
    for row in rows:
        if row.kind in (OTHER, PRUNED) and row.origin.prune is None and row.digest in parents:
            child = parents[row.digest]
            row.origin.kind, row.origin.dense = PRUNED, child.origin.dense
            row.origin.dense_digest = child.origin.dense_digest


def share(part: float) -> str:
    """A share in percent."""
    return f"{part:.1%}".replace(".0%", "%")


def settings(row: Row) -> dict[str, Any]:
    """All settings that made the model, by stage."""
    return {stage: getattr(row.origin, stage) or {} for stage in ("prune", "align", "quantize", "train", "merge")}


def clean(text: str) -> str:
    """The text in one line, without characters that a terminal would act upon."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def pruning(row: Row) -> str:
    """What pruned the model that a row is of or began with."""
    prune = row.origin.prune
    if not prune:
        return {DENSE: "", OTHER: "other models"}.get(row.kind, "" if row.origin.unpruned else "pruned elsewhere")
    words = [f"{prune.get('method') or '?'} {share(prune['ratio']) if prune.get('ratio') else ''}".strip()]
    chosen = [prune.get(key) for key in ("profile", "repair", "update")]
    words += [str(name) for name in chosen if name not in (None, "none")]
    words += [key for key in ("variant", "permute", "overrides") if prune.get(key)]
    return clean(" + ".join(words))


def rounding(origin: Origin) -> str:
    """What a model was rounded with, and to what."""
    joint = (origin.prune or {}).get("quantize")
    if not (grid := origin.quantize or joint):
        return ""
    return clean(f"{grid.get('method') or 'in one solve'} int{grid['bits']} g{grid['group_size']}")


def goal(row: Row) -> str:
    """The sparsity that was asked for: of a pruned or tuned model the one that its group has."""
    if row.kind in (DENSE, OTHER) or row.origin.unpruned:
        return ""
    prune = row.origin.prune or {}
    asked = prune.get("ratio") if prune.get("sparsity") is None else prune["sparsity"]
    try:
        return share(row.sparsity if asked is None else float(asked))
    except ValueError:
        return clean(str(asked))


def method(row: Row) -> str:
    """The row's name among those of its group."""
    if row.kind == DENSE:
        return "dense"
    origin = row.origin
    aligned = "aligned" if origin.align is not None else ""
    model = ", ".join(filter(None, (pruning(row), aligned, rounding(origin))))
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
    words += ["quantization-aware"] if train.get("quantization_aware") else []
    words += ["under the mask"] if merge.get("method") == MASKED else []
    return clean(" + ".join(filter(None, (model, " ".join(words)))))


def names(rows: list[Row], ignoring: tuple[str, ...] = ()) -> list[str]:
    """A name for each row of a group; equal ones get the settings that tell them apart, else their runs.

    Args:
        rows: of one group.
        ignoring: settings by which rows are not told apart.

    """
    named = [method(row) for row in rows]
    alike: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(named):
        alike[name].append(number)
    for numbers in alike.values():
        if len(numbers) > 1:
            for number, words in zip(numbers, _differences([rows[n] for n in numbers], ignoring), strict=True):
                named[number] = clean(f"{named[number]} {words}")
    doubles = {name for name in named if named.count(name) > 1}
    top = os.path.commonpath([row.runs[0].directory.absolute() for row in rows]) if doubles else ""
    for number, row in enumerate(rows):
        if named[number] in doubles:
            place = os.path.relpath(row.runs[0].directory.absolute(), top)
            named[number] = clean(f"{named[number]} [{row.runs[0].directory.name if place == '.' else place}]")
    return named


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

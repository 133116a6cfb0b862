"""One row for each model of each run, with what it cost; a model that several runs measured alike is one row."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lors_cli.reporting import columns, provenance
from lors_cli.reporting.columns import Column, Measure
from lors_cli.reporting.provenance import DENSE, OTHER, PRUNED, TUNED, UNMERGED, Origin
from lors_cli.reporting.runs import LeftOut, Manifests, Run
from lors_cli.run.manifest import Aligned, Merged, Pruned, Recovered, Trained

ORDER = (DENSE, PRUNED, OTHER, TUNED)


@dataclass
class Cost:
    """What a model took; None where it is not known.

    Attributes:
        tokens: seen in training.
        trainable: parameters of the adapter.
        parameters: of the model.
        embeddings: whether `parameters` counts everything, or only the linears of the blocks.
        seconds: of training.
        peak_bytes: of memory, in training.
        on_gpu: whether that is the GPU's.
        size_bytes: of the model directory.
        reduction: parameters of the original for each one of the model that was trained, if that is smaller.

    """

    tokens: int | None = None
    trainable: int | None = None
    parameters: int | None = None
    embeddings: bool = True
    seconds: float | None = None
    peak_bytes: int | None = None
    on_gpu: bool = False
    size_bytes: int | None = None
    reduction: float | None = None


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
    def base(self) -> tuple[str, str]:
        """The model at the beginning: its name and its digest, as far as that is known."""
        return self.origin.base, self.origin.base_digest or ""

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
        for name, found in run.results["models"].items():
            origin = provenance.trace(run, name, manifests)
            if isinstance(origin, LeftOut):
                left.append(origin)
                continue
            wanted = provenance.evaluated_digest(run, name)
            measured = columns.of_model(run, name)
            row = Row(name, wanted, found["sparsity"], origin, [run], measured, notes=list(origin.notes))
            if not _join(rows, row):
                rows.append(row)
    _name_bases(rows)
    _adopt(rows)
    for row in rows:
        row.cost = _cost(row)
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
        other.measures.update({column: found for column, found in row.measures.items() if column not in common})
        other.runs += row.runs
        return True
    return False


def _name_bases(rows: list[Row]) -> None:
    """One name for each dense model and one model for each name, as far as digests tell."""
    names: dict[str, list[str]] = {}
    for row in rows:
        name, digest = row.base
        known = names.setdefault(name, [])
        if digest and digest not in known:
            known.append(digest)
    taken = {digest: name for name, digests in reversed(names.items()) for digest in digests}
    for row in rows:
        name, digest = row.base
        if not digest and len(names[name]) == 1:
            row.origin.base_digest = digest = names[name][0]
        name = taken.get(digest, name)
        row.origin.base = f"{name} ({digest[:8]})" if digest and len(names[name]) > 1 else name


def _adopt(rows: list[Row]) -> None:
    """A model from elsewhere that adapters were trained for is their pruned model."""
    parents = {row.origin.pruned_digest: row for row in rows if row.origin.pruned_digest}
    for row in rows:
        if row.kind in (OTHER, PRUNED) and row.origin.prune is None and row.digest in parents:
            child = parents[row.digest]
            row.origin.kind, row.origin.base = PRUNED, child.origin.base
            row.origin.base_digest = child.origin.base_digest


def _cost(row: Row) -> Cost:
    origin = row.origin
    cost = Cost()
    training = origin.manifests.get("train" if row.kind == TUNED else "align")
    if training and isinstance(training.facts, Trained):
        cost = Cost(training.facts.tokens, training.facts.trainable_parameters, seconds=training.seconds)
        cost.on_gpu = "gpu_bytes" in training.peak_memory and training.config.get("device") != "cpu"
        cost.peak_bytes = training.peak_memory.get("gpu_bytes" if cost.on_gpu else "host_bytes")
    smaller = [made.facts for stage in ("prune", "align") if (made := origin.manifests.get(stage))]
    reductions = (facts.reduction for facts in smaller if isinstance(facts, Pruned | Aligned))
    cost.reduction = next((reduction for reduction in reductions if reduction is not None), None)
    directory = None if origin.target == UNMERGED else origin.directory  # which holds the adapter alone
    if directory and directory.is_dir():
        cost.size_bytes = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    if cost.trainable:
        counted = _trained(origin) or (_parameters(directory) if directory else None)
        cost.parameters, cost.embeddings = counted or _measured(origin), counted is not None
    return cost


def _trained(origin: Origin) -> int | None:
    """The parameters of a smaller model that was trained; None of models that keep their size."""
    facts = origin.manifests["prune"].facts if "prune" in origin.manifests else None
    return facts.parameters["after"] if isinstance(facts, Pruned) and facts.parameters else None


def _measured(origin: Origin) -> int | None:
    """The parameters that a merge or a recovery counted."""
    facts = origin.made and origin.made.facts
    return facts.parameters if isinstance(facts, Merged | Recovered) else None


def _parameters(directory: Path) -> int | None:
    """The parameters of a model by the headers of its files; None if they cannot be read."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    total += size
        except (OSError, SafetensorError):
            return None
    return total or None


def share(part: float) -> str:
    """A share in percent."""
    return f"{part:.1%}".replace(".0%", "%")


def settings(row: Row) -> dict[str, Any]:
    """All settings that made the model, by stage."""
    return {stage: getattr(row.origin, stage) or {} for stage in ("prune", "align", "train", "merge")}

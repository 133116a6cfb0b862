"""The grid of ``lors sweep``: from ``key=v1,v2`` arguments to runs, each with its own config and directory.

<output_dir>/pruned          made once, by the file's own prune section, unless an axis changes the pruning
<output_dir>/sweep/<name>    one run; the name is made of the axes' values: learning_rate=0.0003,rank=8
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from lors_cli.config.load import load
from lors_cli.config.problems import CLI
from lors_cli.config.schema import Config, Merge
from lors_cli.config.train import Train
from lors_cli.errors import Problem, RequestError, request_error, together
from lors_cli.search import points
from lors_cli.search.runs import MADE, Run, Start, train_section

DIRECTORY = "sweep"
SEED = "seed"
# What changes the pruned model, so that with such an axis every run makes its own. A seed changes it too, but runs that
# differ in nothing else are there to be compared with each other: they share one, made with the file's seed.
CHANGES_PRUNING = ("prune", "model", "dtype", "trust_remote_code")
NO_AXES = {
    "output_dir": "each run has its own directory already",
    "merge": "it does not change training",
    "eval": "it does not change training",
}
HELD_OUT, PERPLEXITY = "held-out loss", "perplexity"


@dataclass(frozen=True)
class Grid:
    """All runs, what they are compared by, and the pruning that makes their model, if they share one.

    `file` and `arguments` are what it was made from; `labels` are the axes' keys and what a table calls them.
    """

    file: Path
    arguments: list[str]
    output: Path
    labels: dict[str, str]
    runs: list[Run]
    criterion: str
    start: Start | None

    @property
    def directory(self) -> Path:
        """Where the runs and the results are."""
        return self.output / DIRECTORY

    @property
    def pruned(self) -> Path:
        """The model that runs share."""
        return self.output / MADE["prune"]


def build(path: Path, arguments: list[str]) -> Grid:
    """Every run of the grid that `arguments` span over the file `path`, checked as far as the schema goes.

    Raises:
        RequestError: with every problem of the arguments, else of all the configs.

    """
    axes = _axes(arguments)
    labels = points.labels(list(axes))
    grid = [dict(zip(axes, texts, strict=True)) for texts in product(*axes.values())]
    configs = together(lambda point: load(path, _overrides(arguments, point)), grid)
    trains = together(train_section, configs)
    criterion = _criterion(configs[0], trains)
    own = any(key.split(".")[0] in CHANGES_PRUNING for key in labels)
    if own:
        _check_prunes(labels, trains)
    runs = []
    for point, config in zip(grid, configs, strict=True):
        values = {key: points.value(config, key, text) for key, text in point.items()}
        runs.append(_run(values, config, criterion, own=own))
    if doubles := [name for name, count in Counter(run.directory.name for run in runs).items() if count > 1]:
        raise request_error("key=v1,v2", "each value once", f"{doubles[0]} twice", "leave one out", CLI)
    result = Grid(path, arguments, Path(configs[0].output_dir), labels, runs, criterion, None)
    if any(run.train.input == str(result.pruned) for run in runs):
        first = {key: text for key, text in grid[0].items() if key.split(".")[0] == "train"}
        base = load(path, _overrides(arguments, first))
        if base.prune:
            return replace(result, start=Start("", base, ["prune"], MADE["prune"]))
    return result


def _axes(arguments: list[str]) -> dict[str, list[str]]:
    """The keys with several values, which are as they were typed.

    Raises:
        RequestError: there is none, or one that cannot be.

    """
    axes: dict[str, list[str]] = {}
    problems: list[Problem] = []
    keys = Counter(argument.partition("=")[0] for argument in arguments)
    for argument in arguments:
        key, _, text = argument.partition("=")
        texts = points.split(text)
        if len(texts) == 1:
            continue
        if "" in texts:
            problems.append(
                Problem(key, "a value between all commas", repr(text), "write null for a key without a value", CLI)
            )
        if len(set(texts)) < len(texts):
            problems.append(Problem(key, "each value once", repr(text), "leave one out", CLI))
        if keys[key] > 1:
            problems.append(Problem(key, "a key given once", f"{keys[key]} times", "join its values by commas", CLI))
        if reason := NO_AXES.get(key.split(".")[0]):
            got = f"an axis, but {reason}"
            problems.append(Problem(key, "a single value", got, "give it one value, or put it into the file", CLI))
        axes[key] = texts
    if not axes:
        expected = "a key with several values, such as train.learning_rate=1e-4,3e-4"
        problems.append(
            Problem("key=v1,v2", expected, "none", "add one, or use lors run; a sweep file has the key arms:", CLI)
        )
    if problems:
        raise RequestError(*dict.fromkeys(problems))
    return axes


def _overrides(arguments: list[str], point: dict[str, str]) -> list[str]:
    """The overrides of one point; an axis that the point leaves out stays as the file has it."""
    chosen = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        if len(points.split(text)) == 1:
            chosen.append(argument)
        elif key in point:
            chosen.append(f"{key}={point[key]}")
    return chosen


def _criterion(config: Config, trains: list[Train]) -> str:
    """What the runs are compared by.

    Raises:
        RequestError: there is nothing, or not the same for all.

    """
    held_out = trains[0].eval_dataset
    if any(train.eval_dataset != held_out for train in trains):
        expected = "the same held-out rows in all runs, whose losses are compared"
        raise request_error("train.eval_dataset", expected, "several values", "give it one value")
    if held_out:
        return HELD_OUT
    if config.eval and config.eval.perplexity:
        return PERPLEXITY
    raise request_error(
        "train.eval_dataset",
        "something to compare the runs by: train.eval_dataset, or eval.perplexity",
        "neither",
        "set one of them; train.eval_dataset does not need a merge",
    )


def _check_prunes(labels: dict[str, str], trains: list[Train]) -> None:
    """Refuse axes of a pruning that does not happen."""
    if given := [train.input for train in trains if train.input]:
        for key in labels:
            if key.split(".")[0] == "prune":
                expected = "train.input to be left out, so that each run trains what it pruned"
                raise request_error(key, expected, given[0], "leave out the axis or train.input")


def _run(values: dict[str, Any], config: Config, criterion: str, *, own: bool) -> Run:
    """The run at a point, in a directory of its own."""
    train, output = train_section(config), Path(config.output_dir)
    for stage, folder in (("quantize", "quantized"), ("align", "aligned")):
        if getattr(config, stage) and train.input is None:
            made = f"train.input={config.output_dir}/{folder}"
            remedy = f"make it once (`lors {stage}`), then sweep with {stage}=null {made}"
            expected = f"no {stage} section, because the runs of a sweep share a model that already exists"
            raise request_error(stage, expected, "one", remedy)
    changes: dict[str, Any] = {"output_dir": str(output / DIRECTORY / points.name(values))}
    stages = ["train"]
    if own and train.input is None:
        stages = ["prune", "train"]
    else:
        changes |= {
            "prune": None,
            "train": train.model_copy(update={"input": train.input or str(output / MADE["prune"])}),
        }
    merge = config.merge or (Merge() if criterion == PERPLEXITY else None)
    if merge:
        changes["merge"] = merge.model_copy(update={"input": None, "adapter": None})
    if criterion == PERPLEXITY and config.recover:
        stages.append("recover")
    if criterion == PERPLEXITY and config.eval:
        # the tasks would cost more than all the rest and decide nothing
        changes["eval"] = config.eval.model_copy(update={"models": ["merged"], "tasks": []})
        stages += ["merge", "eval"]
    return Run(values, config.model_copy(update=changes), stages)

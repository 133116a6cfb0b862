"""Budgets of time: how many steps an arm does in it, its start included, by steps that were timed."""

import shutil
from pathlib import Path
from statistics import median

from lors_cli.artifacts import sealed
from lors_cli.errors import LorsError
from lors_cli.run import manifest
from lors_cli.search import runs
from lors_cli.search.runs import Run, Start
from lors_cli.search.study import Study
from lors_cli.search.sweep_file import Budget

FILE = "times.json"
ROUNDS, TIMED_STEPS = 3, 4
Times = dict[str, dict[str, float]]  # by arm: seconds of a "step", and of everything "before" the first


def steps_in_time(budget: Budget, times: Times, arm: str) -> int:
    """The steps that an arm does in the budget's seconds, or in the time of the budget's steps of another arm."""
    of = times[budget.time_of] if budget.time_of else {}
    seconds = budget.seconds or (budget.steps or 0) * of["step"] + of["before"]
    return max(round((seconds - times[arm]["before"]) / times[arm]["step"]), 1)


def read(start: Start) -> Times:
    """The times that were measured; none before that, or if they are damaged."""
    times: Times = sealed.read_or_warn(start.directory / FILE, "the steps are timed again", start.name) or {}
    return times


def measure(study: Study, start: Start) -> Times:
    """The times of all arms on a start, medians of rounds in which the arms take turns; they are measured once.

    Raises:
        LorsError: a training failed.

    """
    place, budget, known = start.directory / "timing", study.file.budget, read(start)
    others = [row.arm for row in study.rows if row.start == start]
    arms = list(dict.fromkeys([budget.time_of, *others] if budget and budget.time_of else others))
    if set(arms) <= known.keys():
        return known
    timed: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm in arms:
            row = study.row(start, arm, study.points[0])
            timed[arm].append(_timed(study.run(row, row.grid[0], steps=TIMED_STEPS), place))
    medians = {
        arm: {"step": median(step for step, _ in times), "before": median(before for _, before in times)}
        for arm, times in timed.items()
    }
    sealed.write_json(start.directory / FILE, medians, start.name)
    return medians


def _timed(run: Run, place: Path) -> tuple[float, float]:
    """The seconds of a step, and of everything else, of a short training."""
    train = run.train.model_copy(update={"save_steps": TIMED_STEPS + 1, "eval_dataset": None})
    shutil.rmtree(place, ignore_errors=True)  # an interrupted training does not tell a time
    runs.perform(run.config.model_copy(update={"output_dir": str(place), "train": train}), ["train"])
    trained = manifest.read(place / "adapter")
    shutil.rmtree(place)
    if not trained or not isinstance(trained.facts, manifest.Trained):
        raise LorsError(f"{place} does not hold a timed training")
    step = (trained.facts.tokens or 0) / TIMED_STEPS / (trained.facts.tokens_per_second or 1)
    return step, (trained.seconds or 0) - TIMED_STEPS * step

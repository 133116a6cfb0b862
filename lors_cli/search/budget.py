"""Budgets of time: how many steps an arm does in it, its start included, by steps that were timed."""

import shutil
from pathlib import Path
from statistics import median

from lors_cli.artifacts import publish, sealed
from lors_cli.errors import LorsError
from lors_cli.run import manifest
from lors_cli.run.facts import Trained
from lors_cli.search import runs
from lors_cli.search.runs import MADE, Run, Start
from lors_cli.search.study import Study
from lors_cli.search.sweep_file import Budget

FILE = "times.json"
ROUNDS, TIMED_STEPS = 3, 4
MAKING = ""  # among the times of arms, that of making the start; no arm has this name
Times = dict[str, dict[str, float]]  # by arm: seconds of a "step", and of everything "before" the first


def steps_in_time(budget: Budget, times: Times, arm: str, measure: Times | None = None) -> int:
    """The steps that an arm does in the budget's seconds, or in the time of the budget's steps of another arm.

    Args:
        budget: seconds, or steps and the arm that has them.
        times: of the start that the arm trains on.
        arm: its name.
        measure: the times of another start, which is the measure: what this start takes longer to be made is taken from
            the training.

    """
    of = (measure or times)[budget.time_of] if budget.time_of else {}
    seconds = budget.seconds or (budget.steps or 0) * of["step"] + of["before"]
    if measure:
        seconds += measure[MAKING]["before"] - times[MAKING]["before"]
    return max(round((seconds - times[arm]["before"]) / times[arm]["step"]), 1)


def read(start: Start) -> Times:
    """The times that were measured; none before that, or if they are damaged."""
    times: Times = sealed.read_or_warn(start.directory / FILE, "the steps are timed again", start.name) or {}
    return times


def is_new(start: Start) -> bool:
    """Whether no model of the start is there or begun, so that its manifest will tell how long all of it takes."""
    places = [start.directory / MADE[stage] for stage in start.making]
    return not any(path.exists() for place in places for path in (place, publish.partial_directory(place)))


def measure(study: Study, start: Start, *, was_new: bool) -> Times:
    """The times of all arms on a start, medians of rounds in which the arms take turns; they are measured once.

    Args:
        study: whose arms are timed.
        start: its models are there.
        was_new: whether they were made just now, in one go.

    Raises:
        LorsError: a training failed.

    """
    place, known = start.directory / "timing", read(start)
    arms = study.timed(start)
    times = known if set(arms) <= known.keys() else {**known, **_of_arms(study, start, arms, place)}
    if start.counts and MAKING not in times:
        times[MAKING] = {"step": 0.0, "before": _making(start, None if was_new else place)}
    if times != known:
        sealed.write_json(start.directory / FILE, times, start.name)
    return times


def _of_arms(study: Study, start: Start, arms: list[str], place: Path) -> Times:
    timed: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm in arms:
            row = study.row(start, arm, study.points[0])
            timed[arm].append(_timed(study.run(row, row.grid[0], steps=TIMED_STEPS), place))
    return {
        arm: {"step": median(step for step, _ in times), "before": median(before for _, before in times)}
        for arm, times in timed.items()
    }


def _timed(run: Run, place: Path) -> tuple[float, float]:
    """The seconds of a step, and of everything else, of a short training."""
    train = run.train.model_copy(update={"save_steps": TIMED_STEPS + 1, "eval_dataset": None})
    shutil.rmtree(place, ignore_errors=True)  # an interrupted training does not tell a time
    runs.perform(run.config.model_copy(update={"output_dir": str(place), "train": train}), ["train"])
    trained = manifest.read(place / "adapter")
    shutil.rmtree(place)
    if not trained or not isinstance(trained.facts, Trained):
        raise LorsError(f"{place} does not hold a timed training")
    step = (trained.facts.tokens or 0) / TIMED_STEPS / (trained.facts.tokens_per_second or 1)
    return step, (trained.seconds or 0) - TIMED_STEPS * step


def _making(start: Start, place: Path | None) -> float:
    """The seconds in which the models of a start were made; with a `place` they are made there, to be timed."""
    if place:
        shutil.rmtree(place, ignore_errors=True)
        runs.perform(start.config.model_copy(update={"output_dir": str(place)}), start.making)
    made = [manifest.read((place or start.directory) / MADE[stage]) for stage in start.making]
    if place:
        shutil.rmtree(place)
    return sum(one.seconds or 0 for one in made if one)

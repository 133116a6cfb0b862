"""Which stages run, and in what order: all of them are checked before the first one starts.

The checks come in the order of what they take: first those that need no library, then those that need no model, and
those against the models last, because a model may have to be fetched or converted for them.
"""

import gc
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lors_cli import console, interrupts, numerics, offline, processes
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError, gathered, request_error
from lors_cli.run import early, tidy
from lors_cli.run.layout import STAGES

if TYPE_CHECKING:
    from lors_cli.run.graph import Graph
    from lors_cli.run.job import Job

# A stage's checks: those that need no model come before its only `yield`.
Preparing: TypeAlias = "Generator[None, None, Job]"


def run(config: Config, stages: list[str], *, force: bool = False, dry_run: bool = False) -> list["Job"]:
    """Prepare all the named stages, then perform them in order.

    Everything that can be wrong with a later stage is found before the first one starts.

    Returns:
        with `dry_run` the jobs as they were checked; else none, for they hold memory.

    Raises:
        RequestError: something is wrong with the request.
        LorsError: a stage failed.

    """
    shared = [name for name, stage in STAGES.items() if stage.shared]
    if processes.count() > 1 and not set(stages) <= set(shared):
        got = f"{processes.count()} processes for {', '.join(stages)}"
        expected = f"one process, because only the stages {', '.join(sorted(shared))} can be shared"
        raise request_error("command", expected, got, "start those with torchrun, and the others without")
    tidy.run_directory(Path(config.output_dir))
    early.check(config, stages, force=force)
    if config.eval and config.eval.offline:
        offline.switch_on()
    numerics.check(config.device)
    import torch

    from lors_cli.run.perform import perform

    processes.start()
    jobs = _prepared(config, stages, force=force)
    if dry_run and processes.rank() == 0:
        _say(config, jobs, force=force)
    for job in jobs:
        if not dry_run:
            perform(job, force=force)
            if processes.rank() == 0:
                job.show()
            gc.collect()  # a stage's model would stay until the next one's is there too
            interrupts.check()  # which a signal in a finaliser does not end
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    processes.stop()
    return jobs if dry_run else []


def _say(config: Config, jobs: list["Job"], *, force: bool) -> None:
    """What a dry run prints: what each stage would do, and about how long it takes."""
    from lors_cli.run.perform import plan
    from lors_cli.tools.forecast import Forecast

    forecast = Forecast(config.device, config.dtype)
    for job in jobs:
        console.result(console.fitted(plan(job, force=force)))
        console.result(console.fitted(f"{job.stage}: {forecast.add(job)}"))
    if len(jobs) > 1:
        console.result(console.fitted(forecast.total()))


def _prepared(config: Config, stages: list[str], *, force: bool) -> list["Job"]:
    """The jobs of the stages; of all of them together the problems are raised."""
    from lors_cli.artifacts import inputs
    from lors_cli.run.graph import Graph
    from lors_cli.run.perform import check_output

    graph = Graph(config, stages)

    def begun(stage: str) -> tuple[Preparing, inputs.Inputs]:
        preparing, read = prepare_of(stage)(config, graph), inputs.Inputs()
        with inputs.watched(read, learns=True):
            next(preparing)
        return preparing, read

    def finished(begun: tuple[Preparing, inputs.Inputs]) -> "Job":
        preparing, read = begun
        try:
            with inputs.watched(read, learns=True):
                next(preparing)
        except StopIteration as done:
            job: Job = done.value
        job.read, graph.kept[job.stage] = read, job.effort.kept
        check_output(job, force=force)
        return job

    preparing, problems = gathered(begun, stages)
    if problems and graph.converts:
        raise RequestError(*problems)
    jobs, more = gathered(finished, preparing)
    if problems or more:
        raise RequestError(*dict.fromkeys([*problems, *more]))
    return jobs


def prepare_of(stage: str) -> "Callable[[Config, Graph], Preparing]":
    """The function that checks a stage; imported when it runs, since the libraries of all stages take seconds."""
    if stage == "prune":
        from lors_cli.stages.prune import prepare
    elif stage == "align":
        from lors_cli.stages.align import prepare
    elif stage == "quantize":
        from lors_cli.stages.quantize import prepare
    elif stage == "train":
        from lors_cli.stages.train import prepare
    elif stage == "recover":
        from lors_cli.stages.recover import prepare
    elif stage == "merge":
        from lors_cli.stages.merge import prepare
    else:
        from lors_cli.stages.evaluate import prepare
    return prepare

"""Which stages run, and in what order: all of them are checked before the first one starts."""

import gc
from collections.abc import Callable

import torch

from lors_cli import console, offline, processes
from lors_cli.config.schema import Config
from lors_cli.errors import request_error, together
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.run.layout import STAGES
from lors_cli.run.perform import check_output, perform, plan


def run(config: Config, stages: list[str], *, force: bool = False, dry_run: bool = False) -> None:
    """Prepare all the named stages, then perform them in order.

    Everything that can be wrong with a later stage is found before the first one starts.

    Raises:
        RequestError: something is wrong with the request.
        LorsError: a stage failed.

    """
    shared = [name for name, stage in STAGES.items() if stage.shared]
    if processes.count() > 1 and not set(stages) <= set(shared):
        got = f"{processes.count()} processes for {', '.join(stages)}"
        expected = f"one process, because only the stages {', '.join(sorted(shared))} can be shared"
        raise request_error("command", expected, got, "start those with torchrun, and the others without")
    if config.eval and config.eval.offline:
        offline.switch_on()
    processes.start()
    for job in _prepared(config, stages, force=force):
        if dry_run and processes.rank() == 0:
            console.result(plan(job, force=force))
        elif not dry_run:
            perform(job, force=force)
            if processes.rank() == 0:
                job.show()
            gc.collect()  # a stage's model would stay until the next one's is there too
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    processes.stop()


def _prepared(config: Config, stages: list[str], *, force: bool) -> list[Job]:
    """The jobs of the stages; of all of them together the problems are raised."""
    graph = Graph(config, stages)

    def prepared(stage: str) -> Job:
        job = prepare_of(stage)(config, graph)
        check_output(job, force=force)
        return job

    return together(prepared, stages)


def prepare_of(stage: str) -> Callable[[Config, Graph], Job]:
    """The function that checks a stage; imported when it runs, since the libraries of all stages take seconds."""
    if stage == "prune":
        from lors_cli.stages.prune import prepare
    elif stage == "align":
        from lors_cli.stages.align import prepare
    elif stage == "train":
        from lors_cli.stages.train import prepare
    elif stage == "recover":
        from lors_cli.stages.recover import prepare
    elif stage == "merge":
        from lors_cli.stages.merge import prepare
    else:
        from lors_cli.stages.evaluate import prepare
    return prepare

"""How the work of a job becomes a finished directory; the same for all stages.

A job is skipped if its output was made from the same request, and refused if its output holds something else. The work
happens in a hidden partial directory; the manifest is written last, and the directory gets its name by renaming.
"""

import logging
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lors_cli import console, processes
from lors_cli.artifacts import inputs, locks, publish, sealed
from lors_cli.artifacts.public import without_places
from lors_cli.artifacts.sealed import REQUEST
from lors_cli.config import recipes
from lors_cli.config.dump import as_yaml
from lors_cli.errors import LorsError, Problem, RequestError, request_error
from lors_cli.models import memory, source
from lors_cli.run import card, failures, manifest, places, request, seal
from lors_cli.run.facts import Facts
from lors_cli.run.job import Job, verified_digest
from lors_cli.run.manifest import Request

log = logging.getLogger(__name__)

KEPT = (".safetensors", ".gz")  # suffixes of what an interrupted run goes on with, apart from ``work/``


def perform(job: Job, *, force: bool = False) -> None:
    """Do the job unless it is done already. Of several processes the first decides and publishes, the others help.

    Raises:
        RequestError: the output directory holds something else.
        LorsError: the work failed; nothing is published.

    """
    if processes.rank() > 0:
        if processes.agree(None):
            for path in job.inputs.values():
                source.complete(path)
            memory.forget_peaks()
            with failures.explained(job.stage, job.output):
                job.work(publish.partial_directory(job.output))
        return
    with publish.exclusive(job.output.parent, reading=True) as unwritable, ExitStack() as locked:
        needed = False
        try:
            if not unwritable:
                publish.settle(job.output)
            asked = job.request()
            if force or not _finished(job, asked):
                if unwritable:
                    raise unwritable
                locked.enter_context(locks.replacing(job.output))
                partial, needed = _open_partial(job, asked, forced=force), True
        finally:  # the others wait to hear whether there is anything to help with; where this one fails there is not
            processes.agree(needed)
        if not needed:
            log.info("%s", _up_to_date(job))
            return
        with console.log_to(job.output.parent / "lors.log"), failures.explained(job.stage, job.output):
            _make(job, asked, partial)


def _make(job: Job, asked: Request, partial: Path) -> None:
    """Do the work in the partial directory and publish it."""
    started = time.monotonic()
    log.info("%s: started", job.stage)
    for line in recipes.said(job.config, job.stage):
        log.info("%s: %s", job.stage, line)
    memory.forget_peaks()
    try:
        facts = _worked(job, partial)
        made = manifest.build(partial, job.stage, asked, facts, time.monotonic() - started, **job.origin())
        card.write(partial, made, as_yaml(without_places(recipes.written(job.config))))
        seal.write(partial, made)
        publish.publish(partial, job.output)
    except BaseException as error:
        log.debug("%s: failed: %s", job.stage, error)
        publish.settle(job.output)
        if not job.resumable or not _worth_keeping(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    said = f", {facts.said}" if facts.said else ""
    log.info("%s: finished in %.0f s%s: %s", job.stage, made.seconds, said, job.output)


def _worked(job: Job, partial: Path) -> Facts:
    """Do the work, from beginning to end on the same inputs."""
    with inputs.watched(job.read), locks.reading(path for path in job.inputs.values() if path.is_dir()):
        try:
            facts = job.work(partial)
        except Exception as error:  # whatever became of reading an input that had changed, or gone
            try:
                inputs.check()
            except LorsError as changed:
                raise changed from error
            raise
        inputs.check()
    return facts


def check_output(job: Job, *, force: bool) -> None:
    """Check that the output's place is free or holds an earlier result, before any work.

    Raises:
        RequestError: it holds something that lors did not make, or that was made with other settings.

    """
    if force or not job.output.exists():
        places.check_replaceable(job.output)
    places.check_replaceable(_partial(job))
    if job.output.exists() and not (job.output / manifest.NAME).is_file():
        raise request_error(
            "output_dir",
            f"{job.output} to be absent, or made by lors {job.stage}",
            f"something else (no {manifest.NAME} in it)",
            "move it away, or set another output_dir",
        )
    if force:
        return
    now = {"settings": job.plain_settings()}
    interrupted = left(job)
    for place, old in ((job.output, _recorded(job)), (_partial(job), interrupted and interrupted[0])):
        if old and (problems := _differences(job, {"settings": old.settings}, now, place)):
            raise RequestError(*problems)


def plan(job: Job, *, force: bool) -> str:
    """What performing the job would do, a line for each thing.

    Raises:
        RequestError: its output was made from another request, and cannot be replaced.

    """
    if (
        (job.output / manifest.NAME).is_file()
        and not os.access(job.output.parent, os.W_OK)
        and _finished(job, job.request())
    ):
        return _up_to_date(job)
    goes_on = [f"goes on with what an interrupted run left in {_partial(job)}"] if left(job) and not force else []
    return "\n".join(
        f"{job.stage}: {line}"
        for line in [*recipes.said(job.config, job.stage), *job.plan, *goes_on, f"writes {job.output}"]
    )


def _up_to_date(job: Job) -> str:
    return f"{job.stage}: {job.output} is up to date, nothing to do"


def left(job: Job) -> tuple[Request, bool] | None:
    """What an interrupted run of a resumable job was making, and whether by force; None if it left nothing to use."""
    try:
        interrupted = sealed.read_json(_partial(job) / "work" / REQUEST)
    except sealed.DamagedError:
        return None
    return (_completed(job, Request(**interrupted["request"])), interrupted["forced"]) if job.resumable else None


def _recorded(job: Job) -> Request | None:
    """The request that the output was made from; None if there is none."""
    made = manifest.read(job.output)
    return _completed(job, request.inherited(made.request, made.config)) if made else None


def _completed(job: Job, recorded: Request) -> Request:
    return request.completed(recorded, job.plain_settings(), getattr(job.config, job.stage))


def _finished(job: Job, asked: Request) -> bool:
    """Whether the output exists and was made from the same request.

    Raises:
        RequestError: it was made from another.

    """
    made = _recorded(job)
    if made is None:
        return False
    if made == asked:
        verified_digest(job.output)
        return True
    raise RequestError(*_differences(job, made.content, asked.content, job.output))


def _differences(job: Job, old: dict[str, Any], new: dict[str, Any], place: Path) -> list[Problem]:
    made = "was made" if place == job.output else "was being made when its run was interrupted"
    further = ""
    if job.stage == "train" and place == job.output:
        further = (
            f"to train it further, train.resume_from={place} train.input={job.inputs['pruned']} output_dir=ANOTHER,"
            " where it counts what is added; --force makes it again"
        )
    return request.differences(job.stage, old, new, f"{place} {made}", further)


def _partial(job: Job) -> Path:
    return publish.partial_directory(job.output)


def _worth_keeping(partial: Path) -> bool:
    """Whether the work has left anything to go on with."""
    return any(path.name != REQUEST for path in publish.scratch(partial).iterdir())


def _open_partial(job: Job, asked: Request, *, forced: bool) -> Path:
    """The partial directory: the one that an interrupted run of the same request left, or a new one.

    Raises:
        RequestError: an interrupted run of another request left one, and not `forced`.

    """
    partial, interrupted = _partial(job), left(job)
    if interrupted and interrupted[0] == asked and (interrupted[1] or not forced):
        log.info("%s: going on with what an interrupted run left in %s", job.stage, partial)
        _keep_what_goes_on(partial)
        return partial
    if interrupted and not forced:
        raise RequestError(*_differences(job, interrupted[0].content, asked.content, partial))
    if partial.exists():
        if job.resumable and not interrupted and _worth_keeping(partial):
            _say_why(job, partial)
        shutil.rmtree(partial)
    sealed.write_json(publish.scratch(partial) / REQUEST, {"request": asked.content, "forced": forced})
    return partial


def _keep_what_goes_on(partial: Path) -> None:
    """Remove the small files beside ``work/``, which may have been cut off as they were written: each is written again.

    Weights and the items of an evaluation stay, because what is in ``work/`` counts on them.
    """
    for path in partial.rglob("*"):
        if path.is_file() and path.relative_to(partial).parts[0] != publish.WORK and path.suffix not in KEPT:
            path.unlink()


def _say_why(job: Job, partial: Path) -> None:
    """What an interrupted run left is not gone on with, because nothing vouches for what it was making."""
    request = partial / "work" / REQUEST
    try:
        sealed.read_json(request)
    except sealed.DamagedError as error:
        log.warning("%s: %s cannot be used: %s; the work begins again from the beginning", job.stage, request, error)

"""Which stages run, in what order, and how the work of one becomes a finished directory.

A stage prepares a `Job`: everything that can be checked without the weights, and the work still to do. Performing a
job is the same for all: skip it if its output was made from the same request, refuse an output that holds something
else, work in a hidden partial directory, write the manifest last, rename.
"""

import errno
import gc
import json
import logging
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lors_cli import console, offline, processes
from lors_cli.artifacts import files, publish
from lors_cli.artifacts.files import write_failed
from lors_cli.artifacts.public import without_places
from lors_cli.config.dump import as_yaml
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError, Problem, RequestError, request_error
from lors_cli.models import memory, source
from lors_cli.reporting import card
from lors_cli.run import manifest
from lors_cli.run.job import Job, verified_digest
from lors_cli.stages import STAGES

log = logging.getLogger(__name__)

# The settings that decide how much memory a stage needs.
LESS_MEMORY = {
    "prune": "prune.calibration.samples or sequence_length, or set prune.states: disk",
    "align": "align.micro_batch_size or sequence_length, or set align.gradient_checkpointing: true",
    "train": "train.micro_batch_size or sequence_length, or set train.merge_cache: off, gradient_checkpointing: true"
    " or base: packed (lora: nf4)",
    "merge": "what else runs on the machine (a merge holds one shard of the model)",
    "eval": "eval.batch_size or eval.perplexity.sequence_length",
}
# What Gloo, NCCL and the store say when a process does not answer any more.
LOST = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out", "NCCL", "onnectFullMesh")
SHARED = {"prune", "align", "train", "eval"}  # stages that several processes do together
REQUEST = "request.json"  # in a partial directory: what it is being made from, and whether by force


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
            try:
                job.work(publish.partial_directory(job.output))
            except Exception as error:
                raise _explained(error, job) from error
        return
    with publish.exclusive(job.output.parent):
        needed = False
        try:
            request = job.request()
            needed = force or not _finished(job, request)
            partial = _open_partial(job, request, forced=force) if needed else job.output
        finally:
            processes.agree(needed)
        if not needed:
            log.info("%s: %s is up to date, nothing to do", job.stage, job.output)
            return
        with console.log_to(job.output.parent / "lors.log"):
            _make(job, request, partial)


def _make(job: Job, request: dict[str, Any], partial: Path) -> None:
    """Do the work in the partial directory and publish it."""
    started = time.monotonic()
    log.info("%s: started", job.stage)
    memory.forget_peaks()
    try:
        facts = job.work(partial)
        content = manifest.build(partial, job.stage, request, time.monotonic() - started, {**facts, **job.origin()})
        asked = job.config.model_dump(mode="json", exclude_unset=True)
        card.write(partial, content, as_yaml(without_places(asked)))
        files.write_json(partial / manifest.NAME, content)
        publish.publish(partial, job.output)
    except BaseException as error:
        log.debug("%s: failed: %s", job.stage, error)
        if not job.resumable or not _worth_keeping(partial):
            shutil.rmtree(partial, ignore_errors=True)
        explained = _explained(error, job)
        if explained is error:
            raise
        raise explained from error
    log.info("%s: finished in %.0f s: %s", job.stage, content["seconds"], job.output)


def _explained(error: BaseException, job: Job) -> BaseException:
    """The error itself, or for a full disk or memory one that says what to do."""
    unwritten = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if unwritten or "PytorchStreamWriter" in str(error):  # torch.save's own words
        return write_failed(job.output, error)
    if processes.count() > 1 and isinstance(error, RuntimeError) and any(w in str(error) for w in LOST):
        return LorsError(
            f"{job.stage}: another process of this run has gone ({str(error).splitlines()[0]:.120}); what was saved is"
            f" kept, and the same command goes on from it, on any number of processes"
        )
    # on a CPU torch has no exception of its own for it
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return LorsError(f"{job.stage} ran out of memory; lower {LESS_MEMORY[job.stage]}. {str(error).splitlines()[0]}")
    return error


def check_output(job: Job, *, force: bool) -> None:
    """Check that the output's place is free or holds an earlier result, before any work.

    Raises:
        RequestError: it holds something that lors did not make, or that was made with other settings.

    """
    for parent in [job.output.parent, *job.output.parent.parents]:
        if parent.exists():
            if not parent.is_dir():
                raise request_error("output_dir", "a directory", f"{parent}, a file", "set another output_dir")
            break
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
    for place, old in ((job.output, manifest.read(job.output)), (_partial(job), _left(job))):
        if old and (problems := _differences(job, {"settings": old.get("request", {}).get("settings")}, now, place)):
            raise RequestError(*problems)


def _finished(job: Job, request: dict[str, Any]) -> bool:
    """Whether the output exists and was made from the same request.

    Raises:
        RequestError: it was made from another.

    """
    existing = manifest.read(job.output)
    if existing is None:
        return False
    if existing.get("request") == request:
        verified_digest(job.output)
        return True
    raise RequestError(*_differences(job, existing.get("request", {}), request, job.output))


def _differences(job: Job, old: dict[str, Any], new: dict[str, Any], place: Path) -> list[Problem]:
    """What differs between the request that made (or was making) `place` and the present one."""
    before, now = manifest.flat(old), manifest.flat(new)
    made = "was made" if place == job.output else "was being made when its run was interrupted"
    return [
        Problem(
            f"{job.stage}: {key.removeprefix('settings.')}",
            f"{before.get(key)!r}, with which {place} {made}",
            repr(now.get(key)),
            "--force makes it again; another output_dir keeps both",
        )
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _partial(job: Job) -> Path:
    return publish.partial_directory(job.output)


def _worth_keeping(partial: Path) -> bool:
    """Whether the work has left anything to go on with."""
    return any(path.name != REQUEST for path in publish.scratch(partial).iterdir())


def _left(job: Job) -> dict[str, Any] | None:
    """What an interrupted run of a resumable job was making, and whether by force; None if it left nothing."""
    try:
        found: dict[str, Any] = json.loads((_partial(job) / "work" / REQUEST).read_text())
    except (OSError, ValueError):
        return None
    return found if job.resumable else None


def _open_partial(job: Job, request: dict[str, Any], *, forced: bool) -> Path:
    """The partial directory: the one that an interrupted run of the same request left, or a new one.

    Raises:
        RequestError: an interrupted run of another request left one, and not `forced`.

    """
    partial, left = _partial(job), _left(job)
    if left and left["request"] == request and (left["forced"] or not forced):
        log.info("%s: going on with what an interrupted run left in %s", job.stage, partial)
        return partial
    if left and not forced:
        raise RequestError(*_differences(job, left["request"], request, partial))
    if partial.exists():
        shutil.rmtree(partial)
    files.write_json(publish.scratch(partial) / REQUEST, {"request": request, "forced": forced})
    return partial


def run(config: Config, stages: list[str], *, force: bool = False, dry_run: bool = False) -> None:
    """Prepare all the named stages, then perform them in order.

    Everything that can be wrong with a later stage is found before the first one starts.

    Raises:
        RequestError: something is wrong with the request.
        LorsError: a stage failed.

    """
    if processes.count() > 1 and not set(stages) <= SHARED:
        got = f"{processes.count()} processes for {', '.join(stages)}"
        expected = f"one process: of the stages only {', '.join(sorted(SHARED))} can be shared"
        raise request_error("command", expected, got, "start those with torchrun, and the others without")
    if config.eval and config.eval.offline:
        offline.switch_on()
    processes.start()
    _run(config, stages, force=force, dry_run=dry_run)
    processes.stop()


def _run(config: Config, stages: list[str], *, force: bool, dry_run: bool) -> None:
    jobs: list[Job] = []
    problems: list[Problem] = []
    for position, name in enumerate(stages):
        try:
            prepare = import_module(f"lors_cli.stages.{STAGES[name]}").prepare
            job = prepare(config, stages[:position])
            check_output(job, force=force)
            jobs.append(job)
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(*dict.fromkeys(problems))  # stages that share a fault name it once
    for job in jobs:
        if dry_run and processes.rank() == 0:
            left = [f"goes on with what an interrupted run left in {_partial(job)}"] if _left(job) and not force else []
            lines = [*job.plan, *left, f"writes {job.output}"]
            console.result("\n".join(f"{job.stage}: {line}" for line in lines))
        elif not dry_run:
            perform(job, force=force)
            if processes.rank() == 0:
                job.report()
            gc.collect()  # a stage's model would stay until the next one's is there too
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

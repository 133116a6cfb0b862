"""Which stages run, in what order, and how the work of one becomes a finished directory.

A stage prepares a `Job`: everything that can be checked without the weights, and the work still to do. Performing a
job is the same for all: skip it if its output was made from the same request, refuse an output that holds something
else, work in a hidden partial directory, write the manifest last, rename.
"""

import errno
import gc
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from lors_cli import console
from lors_cli.artifacts import manifest, publish
from lors_cli.artifacts.tensors import write_failed
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError, Problem, RequestError, request_error
from lors_cli.stages import STAGES
from lors_cli.stages.job import Job, verified_digest

log = logging.getLogger(__name__)

# The settings that decide how much memory a stage needs.
LESS_MEMORY = {
    "prune": "prune.calibration.samples or sequence_length",
    "train": "train.micro_batch_size or sequence_length, or set train.gradient_checkpointing: true",
    "merge": "what else runs on the machine (a merge holds one shard of the model)",
    "eval": "eval.batch_size or eval.perplexity.sequence_length",
}
REQUEST = "request.json"  # in a partial directory: what it is being made from, and whether by force


def perform(job: Job, *, force: bool = False) -> None:
    """Do the job unless it is done already.

    Raises:
        RequestError: the output directory holds something else.
        LorsError: the work failed; nothing is published.

    """
    with publish.exclusive(job.output.parent):
        request = job.request()
        if not force and _finished(job, request):
            log.info("%s: %s is up to date, nothing to do", job.stage, job.output)
            return
        with console.log_to(job.output.parent / "lors.log"):
            _make(job, request, forced=force)


def _make(job: Job, request: dict[str, Any], *, forced: bool) -> None:
    """Do the work in a partial directory and publish it."""
    partial = _open_partial(job, {"request": request, "forced": forced})
    started = time.monotonic()
    log.info("%s: started", job.stage)
    try:
        facts = job.work(partial)
        content = manifest.build(partial, job.stage, request, time.monotonic() - started, {**facts, **job.origin()})
        manifest.write_json(partial / manifest.NAME, content)
        publish.publish(partial, job.output)
    except BaseException as error:
        log.debug("%s: failed: %s", job.stage, error)
        if not job.resumable:
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
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
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
    existing = manifest.read(job.output)
    if existing and not force:
        old = existing.get("request", {}).get("settings")
        if problems := _differences(job, {"settings": old}, {"settings": job.plain_settings()}):
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
    raise RequestError(*_differences(job, existing.get("request", {}), request))


def _differences(job: Job, old: dict[str, Any], new: dict[str, Any]) -> list[Problem]:
    """What differs between the request that made the output and the present one."""
    before, now = _flat(old), _flat(new)
    return [
        Problem(
            f"{job.stage}: {key.removeprefix('settings.')}",
            f"{before.get(key)!r}, with which {job.output} was made",
            repr(now.get(key)),
            "--force makes it again; another output_dir keeps both",
        )
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, sub in value.items() for k, v in _flat(sub, f"{prefix}.{name}".strip(".")).items()}
    return {prefix: value}


def _open_partial(job: Job, mark: dict[str, Any]) -> Path:
    """The partial directory: the one that an interrupted run of the same command left, or a new one."""
    partial = publish.partial_directory(job.output)
    marker = partial / "work" / REQUEST
    if partial.exists():
        try:
            same = json.loads(marker.read_text()) == mark
        except (OSError, ValueError):
            same = False
        if same and job.resumable:
            log.info("%s: going on with what an interrupted run left in %s", job.stage, partial)
            return partial
        shutil.rmtree(partial)
    manifest.write_json(publish.scratch(partial) / REQUEST, mark)
    return partial


def run(config: Config, stages: list[str], *, force: bool = False, dry_run: bool = False) -> None:
    """Prepare all the named stages, then perform them in order.

    Everything that can be wrong with a later stage is found before the first one starts.

    Raises:
        RequestError: something is wrong with the request.
        LorsError: a stage failed.

    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        got = f"WORLD_SIZE={os.environ['WORLD_SIZE']}"
        raise request_error(
            "command", "one process: lors does not run on several yet", got, "start it without torchrun"
        )
    jobs: list[Job] = []
    problems: list[Problem] = []
    for position, name in enumerate(stages):
        try:
            job = STAGES[name](config, stages[:position])
            check_output(job, force=force)
            jobs.append(job)
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(*dict.fromkeys(problems))  # stages that share a fault name it once
    for job in jobs:
        if dry_run:
            console.result("\n".join(f"{job.stage}: {line}" for line in [*job.plan, f"writes {job.output}"]))
        else:
            perform(job, force=force)
            job.report()
            gc.collect()  # a stage's model would stay until the next one's is there too
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

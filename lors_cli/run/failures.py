"""Failures that mean something else than they say: a full disk, too little memory, another process that has gone."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lors_cli import processes
from lors_cli.artifacts.files import write_failed
from lors_cli.errors import LorsError
from lors_cli.models import memory
from lors_cli.run.layout import STAGES

# What Gloo, NCCL and the store say when a process does not answer any more.
LOST = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out", "NCCL", "onnectFullMesh")


@contextmanager
def explained(stage: str, output: Path) -> Iterator[None]:
    """Raise a `LorsError` that says what to do in place of an error that does not."""
    try:
        yield
    except BaseException as error:
        reason = _explanation(error, stage, output)
        if reason is None:
            raise
        raise reason from error


def _explanation(error: BaseException, stage: str, output: Path) -> LorsError | None:
    unwritten = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if unwritten or "PytorchStreamWriter" in str(error):  # torch.save's own words
        return write_failed(output, error)
    if processes.count() > 1 and isinstance(error, RuntimeError) and any(words in str(error) for words in LOST):
        return LorsError(
            f"{stage}: another process of this run has gone ({str(error).splitlines()[0]:.120}); what was saved is"
            f" kept, and the same command goes on from it, on any number of processes"
        )
    if memory.ran_out(error):
        first = str(error).splitlines()[0]
        return LorsError(f"{stage} ran out of memory; lower {STAGES[stage].less_memory}. {first}")
    return None

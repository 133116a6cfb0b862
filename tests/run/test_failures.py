import errno
from pathlib import Path

import pytest

from lors_cli.errors import LorsError
from lors_cli.run.failures import explained
from lors_cli.run.layout import STAGES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")])
def test_too_little_memory_names_the_settings_that_need_less(stage: str, error: Exception, tmp_path: Path) -> None:
    with pytest.raises(LorsError) as caught, explained(stage, tmp_path / "out"):
        raise error
    assert f"{stage} ran out of memory; lower {STAGES[stage].less_memory}." in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_full_disk_names_the_place_and_what_is_free(tmp_path: Path) -> None:
    with pytest.raises(LorsError, match=r"cannot write .*out.* GB free there"), explained("merge", tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOENT, "no such file")])
def test_anything_else_stays_as_it_is(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, explained("train", tmp_path):
        raise error
    assert caught.value is error

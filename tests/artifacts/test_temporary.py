import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lors_cli.artifacts import temporary

KILLED = """
import os, signal
from lors_cli.artifacts import temporary
with temporary.directory("test") as path:
    (path / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_swept_and_nothing_else(place: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    (left,) = place.iterdir()
    (place / ".lors-test-of-others").mkdir()
    (place / ".lors-test-12345678").symlink_to(place / ".lors-test-of-others")
    with temporary.directory("test") as path:
        assert not left.exists()
        assert {*place.iterdir()} == {path, place / ".lors-test-of-others", place / ".lors-test-12345678"}


def test_one_in_use_stays(place: Path) -> None:
    with temporary.directory("test") as first:
        (first / "file").touch()
        temporary._sweep.cache_clear()
        with temporary.directory("test") as second:
            assert first != second
            assert (first / "file").exists()
    assert not [*place.iterdir()]

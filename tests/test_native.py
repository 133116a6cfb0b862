import logging
import shutil
import sys
from pathlib import Path

import pytest

from lors_cli import native

SOURCE = 'extern "C" int answer() { return 42; }'
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None, reason="needs Linux and a C++ compiler"
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lors/native"


def test_what_was_built_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.load("small", SOURCE, ()).answer() == 42
    (built,) = cache.iterdir()
    monkeypatch.setattr(native, "_built", None)
    assert native.load("small", SOURCE, ()).answer() == 42
    assert list(cache.iterdir()) == [built]


def test_what_is_damaged_is_built_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load("small", SOURCE, ())
    (built,) = cache.iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))  # the loader keeps what it has loaded from a path
    damaged = cache / "other/lors/native" / built.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(built.read_bytes()[:1000])
    assert native.load("small", SOURCE, ()).answer() == 42
    assert damaged.read_bytes() == built.read_bytes()
    assert list(damaged.parent.iterdir()) == [damaged]


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.parent.write_text("a file in the place of the folder")
    assert native.load("small", SOURCE, ()).answer() == 42


def test_the_message_of_the_compiler_is_in_the_log(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(native.UnavailableError, match="fails"):
        native.load("wrong", "int answer() { return question; }", ())
    assert "question" in caplog.text
    assert not list(cache.iterdir())


def test_instructions_that_are_not_there() -> None:
    with pytest.raises(native.UnavailableError, match="not have none_such"):
        native.load("small", SOURCE, ("none_such",))

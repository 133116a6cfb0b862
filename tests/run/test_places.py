"""What stands where a request reads or writes is told before anything is opened or begins."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.artifacts import publish
from lors_cli.errors import RequestError
from lors_cli.run import places

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe to which nobody writes."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    return tmp_path / "pipe.jsonl"


@pytest.mark.parametrize("key", ["model", "train__dataset", "prune__mask", "eval__perplexity__dataset"])
def test_pipes_are_not_opened(lors: Lors, write_config: WriteConfig, pipe: Path, key: str) -> None:
    changes = {key: str(pipe)} | ({"prune__method": "from_mask"} if key == "prune__mask" else {})
    result = lors("run", write_config(**changes), "--dry-run", status=2)
    assert f"{pipe}, a pipe, a socket or a device" in result.stderr


def test_pipes_in_folders_are_not_opened(lors: Lors, write_config: WriteConfig, pipe: Path, tmp_path: Path) -> None:
    for changes in ({"model": str(tmp_path)}, {"train__dataset": str(tmp_path)}):
        assert str(pipe) in lors("run", write_config(**changes), "--dry-run", status=2).stderr
    result = lors("run", write_config(train__dataset=f"{tmp_path}/*.jsonl"), "--dry-run", status=2)
    assert f"{pipe}, which is a dangling link, a pipe" in result.stderr
    for command in ("inspect", "report"):
        assert str(pipe) in lors(command, tmp_path, status=2).stderr
    assert "is not a file" in lors("run", pipe, status=2).stderr


def test_sockets_devices_and_names_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in (Path("socket"), Path("/dev/zero")):
            with pytest.raises(RequestError, match=r"model(.*\n)*.*a socket or a device"):
                places.exists("model", path)
    with pytest.raises(RequestError, match="File name too long"):
        places.exists("model", tmp_path / ("x" * 300))
    places.check_apart(tmp_path / "run", "model", "x" * 300)  # which is left to `exists`
    assert not places.exists("model", tmp_path / "nothing")
    assert not places.exists("model", Path("/dev/null/x"))


@pytest.mark.parametrize(
    ("made", "output", "got"),
    [
        ("link", "{root}/link", "a link to nowhere"),
        ("link", "{root}/link/run", "a link to nowhere"),
        ("loop", "{root}/loop/run", "Too many levels"),
        ("pipe", "{root}/pipe", "a pipe, a socket or a device"),
        ("", "{root}/" + "x" * 256, "too long"),
        ("", "{root}/new/" + "é" * 128, "at most 255"),
        ("", "{root}/" + "new/" * 940, "bytes"),
        ("folder", "{root}/folder/run", "is replaced as a whole"),
        ("", "{dense}/run", "outside of model"),
        ("", "{dense}", "outside of model"),
        ("log", "{root}/log", "lors.log"),
        ("lock", "{root}/lock", ".lock"),
        ("", "/proc/run", "output_dir"),
    ],
)
def test_an_output_directory_that_cannot_be(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path, made: str, output: str, got: str
) -> None:
    place = tmp_path / made
    if made in ("link", "loop"):
        place.symlink_to("nowhere" if made == "link" else "loop")
    elif made == "pipe":
        os.mkfifo(place)
    elif made:
        (place / {"folder": ".", "log": "lors.log", "lock": ".lock"}[made]).mkdir(parents=True)
        if made == "folder":
            (place / "lors.json").write_text("{}")
    config = write_config(output_dir=output.format(root=tmp_path, dense=dense))
    for option in ([], ["--dry-run"]):
        result = lors("prune", config, *option, status=2)
        assert "output_dir" in result.stderr
        assert got in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["pruned", ".pruned.partial"])
def test_an_output_that_no_rename_can_replace(lors: Lors, write_config: WriteConfig, tmp_path: Path, name: str) -> None:
    place, elsewhere = tmp_path / "run" / name, tmp_path / "elsewhere"
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    for option in ([], ["--dry-run"]):
        assert f"{place}, a link" in lors("prune", write_config(), *option, status=2).stderr
    place.unlink()
    lors("prune", write_config())
    (tmp_path / "run/pruned").rename(elsewhere)
    (tmp_path / "run/pruned").symlink_to(elsewhere)  # moved to a larger disk, say
    assert "nothing to do" in lors("prune", write_config()).stderr
    assert "a link" in lors("prune", write_config(), "--force", status=2).stderr
    assert (elsewhere / "lors.json").is_file()


def test_a_mount_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places.check_replaceable(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(RequestError, match="where a file system is mounted"):
        places.check_replaceable(tmp_path)


def test_a_second_run_by_force_loses_nothing(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config())
    before = (tmp_path / "run/pruned/lors.json").read_bytes()
    with publish.exclusive(tmp_path / "run"):
        result = lors("prune", write_config(), "--force", status=1)
    assert "another lors process is working in" in result.stderr
    assert (tmp_path / "run/pruned/lors.json").read_bytes() == before

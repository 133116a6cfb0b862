"""Links: inside a directory and a hub cache they are files; out of it, and pipes, they are refused by name."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lors_cli.artifacts import model_files
from lors_cli.artifacts.links import FilesError

Made = Callable[[Path, Path], object]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What nobody may publish, beside a model."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("hf_canary")
    return tmp_path / "home/token"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "additional_chat_templates").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


OUT: dict[str, Made] = {
    "tokenizer.model": lambda link, secret: link.symlink_to(secret),
    "LICENSE": lambda link, secret: link.symlink_to(os.path.relpath(secret, link.parent)),
    "notes.txt": lambda link, secret: link.symlink_to(secret),
    "original": lambda link, secret: link.symlink_to(secret.parent),
    "additional_chat_templates/tool.jinja": lambda link, secret: link.symlink_to(secret),
    "additional_chat_templates/more": lambda link, secret: link.symlink_to(secret.parent),
    "custom_generate": lambda link, secret: link.symlink_to(secret.parent),
    "vocab.json": lambda link, _: link.symlink_to("/dev/stdin"),
    "merges.txt": lambda link, secret: link.symlink_to(link.parent.parent / "model2"),
}
BROKEN: dict[str, Made] = {
    "gone.json": lambda link, _: link.symlink_to(link.parent / "nothing"),
    "round.json": lambda link, _: link.symlink_to(link),
}
SPECIAL: dict[str, Made] = {
    "tokenizer.json": lambda path, _: os.mkfifo(path),
    "additional_chat_templates/pipe.jinja": lambda path, _: os.mkfifo(path),
}


@pytest.mark.parametrize("name", OUT)
def test_a_link_that_leads_out(model: Path, secret: Path, name: str) -> None:
    OUT[name](model / name, secret)
    with pytest.raises(FilesError, match="leads out of") as caught:
        model_files.files(model)
    assert name in str(caught.value)
    (model / name).unlink()  # the remedy
    assert list(model_files.files(model)) == ["config.json"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_link_to_nothing(model: Path, secret: Path, name: str) -> None:
    BROKEN[name](model / name, secret)
    with pytest.raises(FilesError, match="link to nothing"):
        model_files.files(model)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_pipe_is_no_file(model: Path, secret: Path, name: str) -> None:
    SPECIAL[name](model / name, secret)
    with pytest.raises(FilesError, match="neither a file nor a folder"):
        model_files.files(model)


def test_a_socket_is_no_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("tokenizer.json")
        with pytest.raises(FilesError, match="neither a file nor a folder"):
            model_files.files(model)


def test_links_within_a_directory_and_to_a_directory(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").symlink_to("config.json")
    (model / ".cache").symlink_to("/")  # hidden: never read
    (tmp_path / "big.safetensors").write_bytes(b"")
    (model / "model.safetensors").symlink_to(tmp_path / "big.safetensors")  # weights are read, not copied
    (tmp_path / "name").symlink_to(model)
    for path in (model, tmp_path / "name"):
        assert list(model_files.files(path)) == ["config.json", "model.safetensors", "tokenizer.json"]


def hub_cache(root: Path) -> Path:
    """A snapshot in the layout of the hub's client."""
    repository = root / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs/abc").write_text("{}")
    (repository / "snapshots/rev/additional_chat_templates").mkdir(parents=True)
    (repository / "snapshots/rev/config.json").symlink_to("../../blobs/abc")
    (repository / "snapshots/rev/additional_chat_templates/a.jinja").symlink_to("../../../blobs/abc")
    return repository


def test_the_blobs_of_a_hub_cache_are_its_own(tmp_path: Path) -> None:
    repository = hub_cache(tmp_path)
    (tmp_path / "elsewhere").symlink_to(repository)
    for path in (repository / "snapshots/rev", tmp_path / "elsewhere/snapshots/rev"):
        assert list(model_files.files(path)) == ["additional_chat_templates/a.jinja", "config.json"]


def own(repository: Path, secret: Path) -> Path:
    (repository / "snapshots/rev/LICENSE").symlink_to(secret)
    return repository / "snapshots/rev"


def linked_blobs(repository: Path, secret: Path) -> Path:
    (repository / "blobs/abc").unlink()
    (repository / "blobs").rmdir()
    (repository / "blobs").symlink_to(secret.parent)
    (secret.parent / "abc").write_text("{}")
    return repository / "snapshots/rev"


def linked_blob(repository: Path, secret: Path) -> Path:
    (repository / "blobs/abc").unlink()
    (repository / "blobs/abc").symlink_to(secret)
    return repository / "snapshots/rev"


def of_another(repository: Path, secret: Path) -> Path:
    other: Any = hub_cache(secret.parent)
    (repository / "snapshots/rev/LICENSE").symlink_to(other / "blobs/abc")
    return repository / "snapshots/rev"


@pytest.mark.parametrize("made", [own, linked_blobs, linked_blob, of_another])
def test_a_layout_that_only_looks_like_a_hub_cache(tmp_path: Path, secret: Path, made: Callable[..., Path]) -> None:
    with pytest.raises(FilesError, match="leads out of"):
        model_files.files(made(hub_cache(tmp_path), secret))

"""What is sealed is used as it was written, or the reason why not is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.artifacts import digest, sealed

VALUE = {"step": 3, "loss": 1.5, "best": [0.1, 2], "none": None}


def test_a_value_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    sealed.write_json(path, VALUE, "mine")
    assert sealed.read_json(path, "mine") == VALUE
    sealed.write_json(path, {10: "a", 9: "b"})  # keys become text, in whichever order they are sorted
    assert sealed.read_json(path) == {"10": "a", "9": "b"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "", "cannot be read"),
        (lambda text: text[:-5], "cannot be read"),
        (lambda text: "[" * 100_000, "cannot be read"),
        (lambda text: text.replace('"step": 3', '"step": 4'), "not what was written"),
        (lambda text: text.replace('"loss": 1.5', '"loss": 1.50000001'), "not what was written"),
        (lambda text: text.replace('"mine"', '"yours"'), "not what was written"),
        (lambda text: json.dumps(VALUE), "carries no digest"),
        (lambda text: "[]", "carries no digest"),
        (lambda text: '{"sha256": []}', "not what was written"),
    ],
)
def test_an_edit_is_noticed(tmp_path: Path, spoil: Callable[[str], str], said: str) -> None:
    path = tmp_path / "state.json"
    sealed.write_json(path, VALUE, "mine")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(sealed.DamagedError, match=said):
        sealed.read_json(path, "mine")


def test_what_is_missing_or_of_another_run_is_told(tmp_path: Path) -> None:
    sealed.write_json(tmp_path / "state.json", VALUE, "theirs")
    with pytest.raises(sealed.DamagedError, match="another run"):
        sealed.read_json(tmp_path / "state.json", "mine")
    with pytest.raises(sealed.DamagedError, match="is missing"):
        sealed.read_json(tmp_path / "none.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(sealed.DamagedError, match="cannot be read"):
        sealed.read_json(tmp_path / "folder")


def test_every_bit_of_every_file_of_a_directory_counts(tmp_path: Path) -> None:
    directory = tmp_path / "step-1"
    directory.mkdir()
    (directory / "a").write_bytes(b"some")
    (directory / "b").write_bytes(b"more")
    sealed.seal(directory, "mine", "step-1")
    (directory / ".DS_Store").write_bytes(b"of the system")
    assert sealed.damage(directory, "mine") is None
    for path in [path for path in directory.iterdir() if not path.name.startswith(".")]:
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            changed = path.name != sealed.DIGESTS or json_differs(path.read_bytes(), whole)
            assert bool(sealed.damage(directory, "mine")) == changed, (path, place)
        path.write_bytes(whole)


def json_differs(one: bytes, other: bytes) -> bool:
    """Whether two texts are not the same JSON: a flipped bit of a blank may leave one."""
    try:
        return bool(json.loads(one) != json.loads(other))
    except ValueError:
        return True


def test_a_directory_under_another_name_or_with_other_files_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "step-1"
    directory.mkdir()
    (directory / "a").write_bytes(b"some")
    assert sealed.damage(directory, "mine") == sealed.UNSEALED
    sealed.seal(directory, "mine", "step-1")
    shutil.copytree(directory, tmp_path / "step-2")
    assert "another run" in str(sealed.damage(tmp_path / "step-2", "mine"))
    assert "another run" in str(sealed.damage(directory, "yours"))
    (directory / "scheduler.pt").write_bytes(b"a pickle")
    assert sealed.damage(directory, "mine") == "scheduler.pt was not saved with it"
    (directory / "scheduler.pt").unlink()
    (directory / "a").unlink()
    assert sealed.damage(directory, "mine") == "a is missing"
    shutil.rmtree(directory)
    assert sealed.damage(directory, "mine") == "it is missing"


def test_what_is_damaged_is_kept_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    assert sealed.read_or_warn(path, "all begins again") is None
    for content in ("one", "another"):
        path.write_text(content)
        assert sealed.read_or_warn(path, "all begins again") is None
        assert not path.exists()
        assert (tmp_path / "state.json.damaged").read_text() == content
    assert "It is kept as state.json.damaged; all begins again" in caplog.text


def test_the_owner_is_the_digest_of_the_request(tmp_path: Path) -> None:
    assert sealed.owner(tmp_path) == ""
    sealed.write_json(tmp_path / sealed.REQUEST, {"request": {"a": 1}, "forced": False})
    assert sealed.owner(tmp_path) == digest.of_value({"a": 1})

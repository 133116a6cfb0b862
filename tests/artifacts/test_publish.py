import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lors_cli.artifacts import adapter_file, digest, publish
from lors_cli.artifacts.adapter_file import AdapterFile


def test_publishing_swaps_the_whole_directory(tmp_path: Path) -> None:
    final = tmp_path / "pruned"
    for content in ("first", "second"):
        partial = publish.partial_directory(final)
        partial.mkdir()
        (partial / content).write_text(content)
        publish.publish(partial, final)
        assert [path.name for path in final.iterdir()] == [content]
        assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_a_failed_swap_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, partial = tmp_path / "pruned", tmp_path / ".pruned.partial"
    final.mkdir()
    partial.mkdir()
    (partial / "new").touch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        publish.publish(partial, final)
    assert list(final.iterdir()) == []


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    assert digest.of_directory(tmp_path / "a") == digest.of_directory(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"x")
    assert digest.of_directory(tmp_path / "a") != digest.of_directory(tmp_path / "b")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_published_has_the_modes_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    final = tmp_path / "final"
    before = os.umask(umask)
    try:
        with publish.written_aside(final) as partial:
            save_file({"a": torch.zeros(2)}, partial / "a.safetensors")  # for its owner alone
            shutil.copytree(tempfile.mkdtemp(dir=tmp_path), partial / "copied")
            (partial / "run.sh").touch(0o755)
        adapter = AdapterFile("lora", 1, 1.0, {"l": {"lora_A": torch.zeros(1, 2), "lora_B": torch.zeros(2, 1)}})
        adapter_file.save_whole(tmp_path / "adapter", adapter, base=str(final), dropout=0.0)
    finally:
        os.umask(before)
    published = [path for top in (final, tmp_path / "adapter") for path in (top, *top.rglob("*"))]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in published}
    assert len(modes) == 7
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~umask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


def test_the_group_of_a_shared_folder_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o2770)
    with publish.written_aside(tmp_path / "final") as partial:
        (partial / "sub").mkdir()
    assert all(path.stat().st_mode & stat.S_ISGID for path in (tmp_path / "final", tmp_path / "final" / "sub"))


def files(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def make(directory: Path, content: str) -> Path:
    (directory / "work").mkdir(parents=True)
    (directory / "lors.json").write_text(content)
    (directory / "work" / "request.json").write_text(content)
    return directory


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_any_step_of_publishing_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, replaces: bool
) -> None:
    class Killed(BaseException):
        pass

    steps = 0
    for last in range(100):
        place = tmp_path / str(last)
        final = place / "pruned"
        partial = make(publish.partial_directory(final), "new")
        if replaces:
            make(final, "old")
            shutil.rmtree(final / "work")
        left = last

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return call(*arguments, **named)

            return instead

        with monkeypatch.context() as patched:
            for module, name in ((os, "fsync"), (Path, "rename"), (publish, "remove")):
                patched.setattr(module, name, counted(getattr(module, name)))
            try:
                publish.publish(partial, final)
                killed = False
            except Killed:
                killed = True
        publish.settle(final)
        assert not publish.unsettled(final)
        found = files(place)
        resumable = {".pruned.partial/lors.json": "new", ".pruned.partial/work/request.json": "new"}
        assert found in ({"pruned/lors.json": "new"}, resumable | ({"pruned/lors.json": "old"} if replaces else {}))
        if not killed:
            steps = last
            break
    assert steps > 5


def test_work_of_an_older_version_is_swept_and_somebody_elses_is_not(tmp_path: Path) -> None:
    make(tmp_path / "pruned", "old")
    other = make(tmp_path / "other", "theirs")
    (other / "work" / "thesis.tex").touch()
    for final in (tmp_path / "pruned", other):
        publish.settle(final)
    assert not (tmp_path / "pruned" / "work").exists()
    assert (other / "work" / "thesis.tex").exists()


def test_files_cut_off_in_an_interrupted_run_are_not_published(tmp_path: Path) -> None:
    partial = make(publish.partial_directory(tmp_path / "pruned"), "new")
    (partial / ".config.json.new").write_text("{")
    (partial / ".mode-abc").mkdir()
    publish.publish(partial, tmp_path / "pruned")
    assert files(tmp_path) == {"pruned/lors.json": "new"}
    assert os.listdir(tmp_path / "pruned") == ["lors.json"]

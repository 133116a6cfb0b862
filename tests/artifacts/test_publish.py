import os
from pathlib import Path

import pytest

from lors_cli.artifacts import digest, publish


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

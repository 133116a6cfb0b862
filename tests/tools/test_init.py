"""The configs that come with the package are written as they are, and nothing is overwritten."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.load import load
from lors_cli.tools import init

Lors = Callable[..., Result]
CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_config_of_the_repository_can_be_asked_for(tmp_path: Path) -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    folders = {path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml")}
    assert init.names()[0] == "quickstart"
    assert set(init.names()) == files | folders
    for name in folders:
        written = init.init(name, tmp_path)
        assert {path.name for path in written} == {path.name for path in (CONFIGS / name).glob("*.yaml")}
        assert all(path.parent == tmp_path / name for path in written)


def test_a_config_is_written_once_with_its_comments(
    lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = lors("init", "quickstart")
    assert said.stdout == "quickstart.yaml\n"
    assert "`lors run quickstart.yaml`" in said.stderr
    text, source = Path("quickstart.yaml").read_text(), (CONFIGS / "quickstart.yaml").read_text()
    (line,) = re.findall("# For an editor .*`lors schema > schema.json`.*\n", text)
    assert text.replace(line, "") == source.replace("configs/quickstart.yaml", "quickstart.yaml")
    assert load(Path("quickstart.yaml"), []) == load(CONFIGS / "quickstart.yaml", [])
    Path("quickstart.yaml").write_text("mine")
    assert "quickstart.yaml to be absent" in lors("init", status=2).stderr
    assert Path("quickstart.yaml").read_text() == "mine"
    lors("init", "papers/llama-2-7b_wanda_50", "--output", "there")
    (there,) = Path("there").iterdir()
    assert there.name == "llama-2-7b_wanda_50.yaml"
    assert "$schema=schema.json\n" in there.read_text()  # not that of the repository's folder above
    assert "did you mean 'papers'" in lors("init", "paper", status=2).stderr
    assert lors("init", "--list").stdout.split() == init.names()


def test_the_wheel_has_the_configs() -> None:
    """The build copies the folder, and the tool looks where it is copied to; a wheel takes too long to build here."""
    setup = (CONFIGS.parent / "setup.py").read_text()
    (target,) = re.findall(r'"(lors_cli/\w+)"', setup)
    assert init.PACKAGE.parent / target == init.PACKAGE / "configs"
    assert "graft configs" in (CONFIGS.parent / "MANIFEST.in").read_text()

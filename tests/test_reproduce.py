"""The scripts of scripts/reproduce: the commands that they print, and one of them on the pico model."""

import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.load import load

FOLDER = Path(__file__).parents[1] / "scripts/reproduce"
TABLES = sorted(path.stem for path in FOLDER.glob("*.py") if "reproduce(" in path.read_text() and path.stem != "common")
Lors = Callable[..., Result]
Script = Callable[..., list[list[str]]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Script:
    """Run a script in this process; the commands that it printed, without the word lors."""

    def run(name: str, *arguments: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--output", str(tmp_path / "out")])
        monkeypatch.syspath_prepend(FOLDER)
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("lors ")]

    return run


def has(command: list[str], *parts: str) -> bool:
    return set(parts) <= set(command)


@pytest.mark.parametrize("scale", ["paper", "smollm2"])
@pytest.mark.parametrize("name", TABLES)
def test_every_command_is_one_that_lors_takes(script: Script, tmp_path: Path, name: str, scale: str) -> None:
    commands = script(name, "--dry-run", "--scale", scale)
    assert commands[-1][0] == "report"
    places = []
    for stage, config, *settings in commands[:-1]:
        if config.endswith("best.yaml"):  # of the sweep before
            continue
        single = [setting for setting in settings if not setting.startswith("train.learning_rate=")]
        found = load(Path(config), single if stage == "sweep" else settings)
        assert stage in ("run", "sweep") or getattr(found, stage)
        places.append((stage, found.output_dir))
    assert len(places) == len(set(places))  # none overwrites what another made
    outputs = {place for stage, place in places if stage in ("run", "sweep")}
    models = {f"{place}/{part}" for _, place in places for part in ("pruned", "aligned", "adapter", "merged", "eval")}
    assert not any(str(parent) in models for place in outputs for parent in Path(place).parents)


def test_the_rows_of_lorams_tables(script: Script, tmp_path: Path) -> None:
    commands = script("loram_downstream", "--dry-run")
    trained = [command for command in commands if command[0] == "run"]
    starts = [setting for command in trained for setting in command if setting.startswith("train.input=")]
    originals = ("Llama-2-13b-hf", "Llama-2-7b-hf", "Llama-2-70b-hf", "Llama-3.1-70B", "Llama-3.1-8B")
    pruned = [
        f"{tmp_path}/out/{model}_{way}/aligned"
        for model in ("llama-2-13b", "llama-2-70b", "llama-3.1-70b")
        for way in ("rand", "stru", "semi", "unst")
    ]
    # Llama-2-13B is a model of the table and the sibling of another
    assert starts == [f"train.input={start}" for start in (*(f"meta-llama/{name}" for name in originals), *pruned)]
    for preset in ("loram-math", "humaneval"):
        measured = [command for command in commands if has(command, f"eval.preset={preset}")]
        assert len(measured) == len(trained) + len(originals)
    small = script("loram_downstream", "--dry-run", "--scale", "smollm2")
    assert not any("humaneval" in part for command in small for part in command)
    assert sum(command[0] == "run" for command in small) == 1 + 4
    only = script("loram_downstream", "--dry-run", "--part", "5")
    assert [command[0] for command in only] == ["run", "eval", "eval"]
    assert has(only[0], starts[5])


def test_curves_on_the_pico_model(
    script: Script, lors: Lors, monkeypatch: pytest.MonkeyPatch, dense: Path, tmp_path: Path
) -> None:
    ran = []

    def run(command: list[str], *, check: bool) -> "subprocess.CompletedProcess[str]":
        ran.append(lors(*command[3:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = ["loram_curves", "--scale", "smollm2", "--prunings", "rand", f"model={dense}", "prune.keep_first=0"]
    arguments += ["prune.keep_last=1", "align.max_steps=4", "align.sequence_length=64", "train.sequence_length=64"]
    script(*arguments, "eval.perplexity.sequence_length=64", "eval.perplexity.samples=4", "device=cpu")
    report = tmp_path / "out/report"
    markdown = (report / "report.md").read_text()
    for name in ("lora r=8 on the original", "structured_random 50%, aligned + lora r=8"):
        assert name in markdown
    assert "Perplexity over training steps" in (report / "report.html").read_text()
    count = len(ran)
    again = script(*arguments, "eval.perplexity.sequence_length=64", "eval.perplexity.samples=4", "device=cpu")
    assert len(again) == len(ran) - count
    assert all("nothing to do" in one.stderr for one in ran[count:-1])

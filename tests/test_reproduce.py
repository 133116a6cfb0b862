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
from lors_cli.models.source import BUILT_IN as SMOLLM2

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


def test_the_points_of_lorams_curves(script: Script, tmp_path: Path) -> None:
    commands = script("loram_curves", "--dry-run", "--scale", "smollm2", "--prunings", "semi")
    trained = [command for command in commands if command[0] == "run"]
    steps = [f"train.max_steps={count}" for count in (5, 10, 20)]
    assert [next(part for part in command if part in steps) for command in trained] == 3 * steps
    assert all(has(command, "train.schedule=constant") for command in trained)
    folder = f"{tmp_path}/out/smollm2-135m"
    starts = (SMOLLM2, f"{folder}_semi/aligned", f"{folder}_semi/pruned")
    for curve, start in enumerate(starts):
        models = "merged" if start == SMOLLM2 else "tuned,merged"
        for command in trained[3 * curve : 3 * curve + 3]:
            assert has(command, f"train.input={start}", f"eval.models=[{models}]")


def test_a_table_of_the_pico_model_goes_on_where_it_stopped(
    script: Script, lors: Lors, monkeypatch: pytest.MonkeyPatch, dense: Path, tmp_path: Path
) -> None:
    ran: list[Result] = []

    def run(command: list[str], *, check: bool) -> "subprocess.CompletedProcess[str]":
        ran.append(lors(*command[3:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = ["loram_downstream", "--scale", "smollm2", "--prunings", "rand", f"model={dense}", "device=cpu"]
    arguments += ["prune.keep_first=0", "prune.keep_last=1", "align.max_steps=4", "train.max_steps=4"]
    arguments += ["eval.tasks=[]", "eval.perplexity.sequence_length=64", "eval.perplexity.samples=4"]
    script(*arguments)
    lines = (tmp_path / "out/report/report.md").read_text().splitlines()
    rows = [line.split("|")[2].strip() for line in lines if line.startswith("| ")]
    pruned = "structured_random 50%"
    assert {"dense", "lora r=8", pruned, f"{pruned}, aligned + lora r=8 on the original"} <= set(rows)
    done = len(ran)
    script(*arguments, "--part", "1")
    assert len(ran) == done + 1
    assert ran[-1].stderr.count("nothing to do") == 4

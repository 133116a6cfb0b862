"""A remedy works when it is followed literally: what a message says to write is written, and the command succeeds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lors_cli.cli import app
from lors_cli.data import builtin

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
PLACES = {"...": "python-topics", "PATH": "python-topics", "N": "2", "ROWS": "2"}  # what a person fills in
ALIGN = {"method": "lors", "rank": 2, "dataset": "python-topics", "sequence_length": 32, "max_steps": 1}
STRUCTURED = ["prune.method=structured_random", "prune.sparsity=null", "prune.keep_first=0", "prune.keep_last=0"]
LORA = ["train.method=lora", "merge.apply_mask=true"]


def run(command: list[str]) -> Result:
    return CliRunner().invoke(app, command)


def problems(stderr: str) -> list[dict[str, str]]:
    """The problems of a message."""
    names = ("expected", "got", "remedy")
    pattern = r"^(?:error: )?(?:.*?: )?(?P<key>\S+)" + "".join(rf"\n  {name}: +(?P<{name}>.*)" for name in names)
    return [match.groupdict() for match in re.finditer(pattern, stderr, re.MULTILINE)]


@pytest.fixture(autouse=True)
def _long_text(jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is long enough for the calibration that is the default."""
    rows = [{"text": text} for text in builtin.texts("train")]
    monkeypatch.setitem(PLACES, "...", str(jsonl([*rows, *rows], "long.jsonl")))


def filled(value: str) -> str:
    for place, meant in PLACES.items():
        value = re.sub(rf"(?<![\w.]){re.escape(place)}(?![\w.])", meant, value)
    return value


def without(command: list[str], key: str) -> list[str]:
    return [word for word in command if word.partition("=")[0] != key]


def follow(command: list[str], problem: dict[str, str]) -> list[str]:
    """The command with the first thing that the remedy says to write."""
    key, remedy = problem["key"], problem["remedy"]
    key = re.sub(r"\[(\d+)\]", r".\1", key)
    section = key if key.split(".")[-1].isdigit() else key.rpartition(".")[0]
    if found := re.search(r"on the command line: (\S+=null)", remedy):
        return [*command, found[1]]
    if found := re.search(r"did you mean '(.+?)'", remedy):
        if problem["expected"] != "a known key" and not problem["expected"].startswith("a key of"):
            return [*without(command, key), f"{key}={found[1]}"]
        meant = found[1] if "." in found[1] or not section else f"{section}.{found[1]}"
        return [re.sub(rf"^{re.escape(key)}=", f"{meant}=", word) for word in command]
    if found := re.search(r"did you mean (/\S+)\?", remedy):
        return [*without(command, key), f"{key}={found[1]}"]
    if found := re.search(r"run `lors (\w+)` first", remedy):
        assert run([found[1], *command[1:2]]).exit_code == 0
        return command
    if found := re.search(r"^--force\b", remedy):
        return [*command, found[0]]
    if found := re.search(r"(?:^|; |, or )([a-z_.]+)(=\S+)", remedy):
        return [*without(command, found[1]), f"{found[1]}{filled(found[2])}"]
    if found := re.search(r"(?:write|add|set|use|leaves?) ([a-z_.]+): (\{.*?\}|\[.*?\]|\"[^\"]*\"|[^\s,]+)", remedy):
        name = found[1]
        known = "." in name or not section or name in ("device", "model", "output_dir")
        return [*command, filled(f"{name if known else f'{section}.{name}'}={found[2]}")]
    raise AssertionError(f"nothing to follow in: {problem}")


CASES: dict[
    str, tuple[str, dict[str, Any], list[str]]
] = {  # by name: the command, what the config has that is wrong, and what the command line adds
    "epochs besides max_steps": ("run", {}, ["train.epochs=2"]),
    "max_tokens besides max_steps": ("run", {}, ["train.max_tokens=64"]),
    "batch_tokens besides batch_size": ("run", {}, ["train.batch_tokens=128"]),
    "two lengths in the file": ("run", {"train__epochs": 1}, []),
    "micro_batch_size": ("run", {}, ["train.micro_batch_size=3"]),
    "an option of another method": ("run", {"prune__damping": 0.1}, []),
    "an option of another adapter": ("run", {}, ["train.dropout=0.1"]),
    "an option of a profile": ("run", {}, ["prune.profile_range=0.1"]),
    "an option of a repair": ("run", {}, ["prune.repair_cycles=3"]),
    "rank of full": ("run", {}, ["train.method=full"]),
    "init_steps of random": ("run", {}, ["train.init=random", "train.init_steps=2"]),
    "eval_steps of nothing": ("run", {}, ["train.eval_steps=2"]),
    "keep of nothing": ("run", {}, ["train.keep=last"]),
    "base of another method": ("run", {}, ["train.base=nf4"]),
    "init of spp": ("run", {}, ["train.method=spp", "train.init=eva"]),
    "formulation": ("run", {}, ["train.formulation=listng"]),
    "method": ("run", {}, ["prune.method=wandaa"]),
    "sparsity of structured": ("run", {}, [*STRUCTURED[:1], *STRUCTURED[2:], "prune.ratio=0.5"]),
    "mask of wanda": ("run", {}, ["prune.mask=mask.safetensors"]),
    "no sparsity": ("run", {"prune__sparsity": ...}, []),
    "no calibration": ("run", {"prune__calibration": ...}, []),
    "calibration as a name": ("run", {}, ["prune.calibration=python-topics"]),
    "profile with N:M": ("run", {}, ["prune.profile=owl"]),
    "profile_range too wide": (
        "run",
        {},
        ["prune.sparsity=0.5", "prune.profile=owl", "prune.variant=true", "prune.permute=true"],
    ),
    "variant with N:M": ("run", {}, ["prune.variant=true"]),
    "permute with a fraction": ("run", {}, ["prune.method=ria", "prune.permute=true", "prune.sparsity=0.5"]),
    "permute with linear": ("run", {}, ["prune.method=ria", "prune.permute=true", "prune.sequential=linear"]),
    "sequential of magnitude": ("run", {}, ["prune.method=magnitude", "prune.sequential=linear"]),
    "states of structured": ("run", {}, [*STRUCTURED, "prune.ratio=0.5", "prune.states=disk"]),
    "override without a target": ("run", {"prune__overrides": [{"match": "q_proj"}]}, []),
    "override with two targets": (
        "run",
        {"prune__overrides": [{"match": "q_proj", "sparsity": 0.5, "skip": True}]},
        [],
    ),
    "override that matches nothing": ("run", {"prune__overrides": [{"match": "q_prj", "skip": True}]}, []),
    "target_modules as text": ("run", {}, ["train.target_modules=q_proj"]),
    "target_modules with commas": ("run", {}, ["train.target_modules=q_proj,v_proj"]),
    "target_modules misspelt": ("run", {}, ["train.target_modules=[q_prj]"]),
    "models as text": ("run", {}, ["eval.models=pruned"]),
    "models misspelt": ("run", {}, ["eval.models=[mergd]"]),
    "merge: true": ("run", {}, ["merge=true"]),
    "unknown key": ("run", {}, ["train.max_stps=3", "train.max_steps=null"]),
    "a key of another section": ("run", {}, ["overlong=truncate"]),
    "initials": ("run", {}, ["train.lr=1e-3"]),
    "dtype": ("run", {}, ["dtype=bfloat"]),
    "device": ("run", {}, ["device=cuda:77"]),
    "an empty value": ("run", {}, ["train.rank="]),
    "a stream without a length": ("run", {}, ["train.dataset.streaming=true", "train.max_steps=null"]),
    "a stream held out": ("run", {}, ["train.eval_dataset={path: python-topics, streaming: true, limit: 2}"]),
    "lora in a merge": ("run", {}, LORA[:1]),
    "apply_mask of lors": ("run", {}, ["merge.apply_mask=true"]),
    "dense and apply_mask": ("run", {}, [*LORA, "merge.dense=true"]),
    "rank of align": (
        "run",
        {"align": {"dataset": "python-topics", "rank": 2, "max_steps": 1, "sequence_length": 32}},
        [],
    ),
    "too much calibration": ("run", {"prune__calibration__samples": 10**5}, []),
    "too long calibration": ("run", {"prune__calibration__sequence_length": 10**6}, []),
    "too long training": ("run", {"train__sequence_length": 10**5}, []),
    "no long document": (
        "run",
        {
            "prune__calibration__samples": 2,
            "prune__calibration__sequence_length": 10**5,
            "prune__calibration__sampling": "random",
        },
        [],
    ),
    "train without prune": ("train", {}, []),
    "eval without prune": ("eval", {"eval__models": ["pruned"]}, []),
    "nothing to measure": ("eval", {"eval": {"models": ["dense"]}}, []),
    "split of the built-in text": ("run", {}, ["train.dataset.split=tst"]),
    "train.input beside align": ("run", {"align": ALIGN, "train__input": "DENSE"}, []),
    "a lora alignment": ("run", {"align": {**ALIGN, "method": "lora"}}, []),
    "merge.input beside train": ("run", {"merge": {"input": "DENSE"}}, []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_to_write_helps(write_config: WriteConfig, dense: Path, name: str) -> None:
    stage, changes, overrides = CASES[name]
    config = write_config(**changes)
    config.write_text(config.read_text().replace("DENSE", str(dense)))
    follow_all([stage, str(config), *overrides, "--dry-run"])


def follow_all(command: list[str]) -> None:
    """Follow what a command that is refused says, until it succeeds."""
    result = run(command)
    assert result.exit_code == 2, result.output
    for _ in range(3):  # several problems, or one after another
        for problem in problems(result.stderr):
            command = follow(command, problem)
        result = run(command)
        if result.exit_code == 0:
            return
    raise AssertionError(f"{command} still ends with {result.output}")


def test_a_path_that_is_misspelt(write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(dense.parent)
    follow_all(["run", str(write_config()), f"model={tmp_path}/modls/{dense.name}", "--dry-run"])


def test_other_settings_than_those_of_the_output(lors: Lors, write_config: WriteConfig) -> None:
    config = write_config()
    lors("prune", config)
    follow_all(["prune", str(config), "prune.sparsity=0.75"])


def test_a_packed_model(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    lors("pack", dense, tmp_path / "packed")
    refused = lors("prune", write_config(model=str(tmp_path / "packed")), status=2)
    (problem,) = problems(refused.stderr)
    command = re.search(r"`lors (.*?)`", problem["remedy"])
    assert command is not None
    lors(*command[1].replace("NEW", str(tmp_path / "new")).split())
    lors("prune", write_config(model=str(tmp_path / "new")), "--dry-run")


def test_a_key_of_a_sweep(write_config: WriteConfig, tmp_path: Path) -> None:
    write_config(train__eval_dataset="python-topics", eval=..., merge=...)
    path = tmp_path / "sweep.yaml"
    path.write_text("{config: config.yaml, seeds: [0, 1], arms: {a: {set: {train.rank: 2}}}}")
    refused = run(["sweep", str(path), "sead=[3]", "--dry-run"])
    assert "did you mean 'seeds'?" in refused.stderr
    follow_all(["sweep", str(path), "sead=[3]", "--dry-run"])
    path.write_text("{config: config.yaml, arms: {a: {set: {train.rank: 2}}}}")
    assert "did you mean 'seed'?" in run(["sweep", str(path), "sead=3", "--dry-run"]).stderr
    follow_all(["sweep", str(path), "sead=3", "--dry-run"])

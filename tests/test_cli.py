"""The commands as a user types them, on a pico model."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli import __version__, adapters, pruning
from lors_cli.cli import app
from lors_cli.config import reference
from lors_cli.run.layout import STAGES

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


HEAVY = {"torch", "transformers", "datasets", "lm_eval"}
COMMANDS = ("run", "prune", "train", "merge", "eval", "inspect", "methods", "schema", "init")


@pytest.mark.parametrize(
    ("command", "status", "said", "heavy"),
    [
        (["--help"], 0, COMMANDS, {*HEAVY, "pydantic", "numpy"}),
        (["methods"], 0, ["sparsegpt", "lors"], HEAVY),
        (["schema"], 0, ["sparsegpt", "prune", "damping"], HEAVY),
        (["prune", "CONFIG", "prune.metod=wanda"], 2, ["prune.metod", "did you mean 'method'?"], HEAVY),
        (["run", "CONFIG", "train.dropout=0.5"], 2, ["train.dropout", "not have a path to drop"], HEAVY),
        (["eval", "CONFIG", "eval=null", "prune.sparsity=1:1"], 2, ["prune.sparsity", "0 < N < M"], HEAVY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_model_imports_nothing_heavy(
    write_config: WriteConfig, command: list[str], status: int, said: list[str], heavy: set[str]
) -> None:
    arguments = [str(write_config()) if word == "CONFIG" else word for word in command]
    script = (
        f"import sys; sys.argv = ['lors', *{arguments}]\n"
        "from lors_cli.cli import main\n"
        f"try: main()\nexcept SystemExit as stop: assert stop.code == {status}\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in said:
        assert words in done.stdout + done.stderr


def test_every_command_has_help_and_a_stage_lists_its_keys(lors: Lors) -> None:
    assert lors("-h").stdout == lors("--help").stdout
    assert "--install-completion" in lors("-h").stdout
    assert lors("--version").stdout.strip() == __version__
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        shown = lors(name, "-h").stdout
        assert "Usage" in shown
        if name in STAGES:
            for path, _, default, _ in reference.keys(name):
                assert f"  {path} " in f"{shown} ".replace("\n", " \n"), f"{name}: {path}"
                assert default != "required" or re.search(rf"  {re.escape(path)}\s+\[required\]", shown), path
            assert f"{name}." in shown
            assert command.params


def test_methods_lists_every_method(lors: Lors) -> None:
    shown = lors("methods").stdout
    equations = {len(line) - len(line.lstrip()) for line in shown.splitlines() if "arXiv" in line}
    assert len(equations) == 1, "the second column is aligned"
    for rows in (pruning.all_methods(), pruning.PROFILES, pruning.REPAIRS, pruning.UPDATES, adapters.METHODS):
        for name, row in rows.items():
            assert f"  {name} " in shown
            assert row.paper in shown


def test_run_does_the_whole_job_and_a_second_run_nothing(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config, run = write_config(), tmp_path / "run"
    first = lors("run", config)
    results = json.loads((run / "eval/results.json").read_text())
    assert list(results["models"]) == ["dense", "pruned", "merged"]
    for name, result in results["models"].items():
        assert result["perplexity"]["tokens"] == 4 * 31
        assert f"{result['perplexity']['value']:.2f}" in first.stdout
        assert name in first.stdout
    assert results["models"]["pruned"]["sparsity"] == 0.5
    assert results["models"]["merged"]["sparsity"] == 0.5
    assert re.search(r"train: finished in \d+ s, loss [\d.]+ at first, [\d.]+ at last: ", first.stderr)
    assert f"merge: now `lors generate {run / 'merged'} --prompt" in first.stderr
    assert f"merge: now `lors pack {run / 'merged'}`" in first.stderr
    grouped = lors("inspect", run / "merged").stdout
    assert re.search(r"\| q_proj +\| +2 \|", grouped)
    assert grouped.count("proj") == 7
    each = lors("inspect", run / "adapter", "--modules").stdout
    assert each.count("lora_A") == 14
    assert re.search(r"\| q_proj +\| +2 \| lora_A \(", lors("inspect", run / "adapter").stdout)
    names = sorted(p.name for p in run.iterdir() if p.name != ".lock")
    assert names == ["adapter", "eval", "lors.log", "merged", "pruned"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    second = lors("run", config)
    assert second.stderr.count("nothing to do") == 4
    assert second.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_manifests_tell_the_story(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("run", write_config())
    for stage, directory in (("prune", "pruned"), ("train", "adapter"), ("merge", "merged"), ("eval", "eval")):
        manifest = json.loads((tmp_path / "run" / directory / "lors.json").read_text())
        assert manifest["stage"] == stage
        assert manifest["versions"]["torch"]
        assert manifest["hardware"]["machine"]
        assert manifest["seconds"] >= 0
        assert manifest["peak_memory"]["host_bytes"] > 0
        assert manifest["request"]["inputs"]
    pruned = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    assert pruned["request"]["settings"]["method"] == "wanda"
    assert set(pruned["calibration"]["tokens_per_linear"].values()) == {8 * 32}
    assert all(facts["sparsity"] == 0.5 for facts in pruned["modules"].values())


def test_dry_run_writes_nothing(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    shown = lors("run", write_config(), "--dry-run").stdout
    assert not (tmp_path / "run").exists()
    for line in (
        "prune: wanda on cpu: 14 linears to 2:4",
        "train: memory:",
        "merge: writes",
        "eval: dense, pruned, merged",
        "merge: estimated: ",
        "all 4 stages, estimated: ",
    ):
        assert line in shown


def test_changed_settings_are_refused_and_forced(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config()
    assert lors("prune", config).stdout.strip() == str(tmp_path / "run/pruned")
    refused = lors("prune", config, "prune.sparsity=0.75", status=2)
    assert "prune: sparsity" in refused.stderr
    assert "'2:4'" in refused.stderr
    assert "--force" in refused.stderr
    lors("prune", config, "prune.sparsity=0.75", "--force")
    facts = json.loads(lors("inspect", tmp_path / "run/pruned", "--json").stdout)
    assert facts["sparsity"] == pytest.approx(0.75)


def test_quiet_leaves_only_results(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    result = lors("prune", write_config(), "-q")
    assert result.stderr == ""
    assert result.stdout.strip() == str(tmp_path / "run/pruned")


def test_debug_shows_the_traceback(lors: Lors, write_config: WriteConfig) -> None:
    assert "Traceback" not in lors("prune", write_config(model="no/such"), status=2).output
    shown = subprocess.run(
        [sys.executable, "-m", "lors_cli", "prune", str(write_config(prune=...)), "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr


def test_two_runs_in_one_directory_are_refused(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    from lors_cli.artifacts.publish import exclusive

    with exclusive(tmp_path / "run"):
        assert "another lors process" in lors("prune", write_config(), status=1).stderr


@pytest.mark.parametrize("pruner", [name for name, row in pruning.METHODS.items() if not row.reads_mask])
def test_a_model_with_bf16_weights_two_shards_and_an_untied_head(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, pruner: str
) -> None:
    model = make_model(tmp_path / "m", dtype=torch.bfloat16, shard="60KB", tie_word_embeddings=False)
    assert len(list(model.glob("model-*.safetensors"))) >= 2
    lors("run", write_config(model=str(model), dtype="auto", prune__method=pruner))
    run = tmp_path / "run"
    for name in ("pruned", "merged"):
        loaded = AutoModelForCausalLM.from_pretrained(run / name)
        assert loaded.dtype == torch.bfloat16
        assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
        facts = json.loads(lors("inspect", run / name, "--json").stdout)
        assert (facts["sparsity"], facts["pattern"]) == (0.5, "2:4")
        assert all(m["negative_zeros"] == 0 and m["dtype"] == "bfloat16" for m in facts["modules"].values())

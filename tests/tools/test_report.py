"""`lors report` as a user types it, over runs that the stages made."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.reporting import export, text
from lors_cli.reporting.page import all_plots
from lors_cli.tools.report import SUFFIXES, collect
from tests.models.test_structure import RANDOM
from tests.reporting.synthetic import edit_json, make_run

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def test_runs_of_the_stages_become_one_table(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(output_dir=str(tmp_path / "runs/lors"), eval__tasks=["lors_quiz"], eval__limit=8)
    lors("run", config)
    spp = [f"output_dir={tmp_path}/runs/spp", "train.method=spp"]
    lors("run", config, *spp, f"train.input={tmp_path}/runs/lors/pruned", "prune=null")
    table = collect([tmp_path / "runs"])
    assert [entry.line.label for entry in table.entries] == ["dense", "wanda", "wanda + lors r=4", "wanda + spp r=4"]
    assert not table.left_out
    assert not any(entry.marks for entry in table.entries)
    names = [text.heading(heading) for heading in table.headings]
    assert names[:2] == ["lors_quiz", "perplexity"]
    assert names[-6:] == ["tokens", "trainable", "‰", "training", "peak memory", "size"]
    results = {name: json.loads((tmp_path / f"runs/{name}/eval/results.json").read_text()) for name in ("lors", "spp")}
    rows = list(csv.DictReader(io.StringIO(lors("report", tmp_path / "runs", "--format", "csv").stdout)))
    values = [float(row["perplexity"]) for row in rows]
    models = results["lors"]["models"]
    assert values[:3] == [models[name]["perplexity"]["value"] for name in ("dense", "pruned", "merged")]
    assert values[3] == results["spp"]["models"]["merged"]["perplexity"]["value"]
    adapter = json.loads((tmp_path / "runs/spp/adapter/lors.json").read_text())
    assert float(rows[3]["tokens"]) == adapter["tokens"]
    assert float(rows[3]["trainable"]) == adapter["trainable_parameters"]
    tests = {test.column.name: test.comparison for test in table.tests}
    assert {test.test for test in tests.values()} == {"McNemar", "bootstrap"}
    assert tests["perplexity"].numbers["difference"] == pytest.approx(abs(math.log(values[2] / values[3])), rel=1e-6)


def test_a_recovered_adapter_is_followed_to_its_training_and_the_smaller_model(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    train = {"train__method": "lora", "train__eval_dataset": {"path": "python-topics", "limit": 2}}
    lors("run", write_config(prune=RANDOM, recover={}, train__eval_steps=2, **train))
    table = collect([tmp_path])
    recovered = "structured_random 50% + lora r=4 on the original"
    assert [entry.line.label for entry in table.entries] == ["dense", "structured_random 50%", recovered]
    assert not any(entry.marks for entry in table.entries)
    assert list(export.stages(table.entries[-1].line.row)) == ["prune", "train", "recover", "merge", "eval"]
    manifests = {name: json.loads((tmp_path / f"run/{name}/lors.json").read_text()) for name in ("pruned", "adapter")}
    cost = table.entries[-1].line.row.cost
    assert (cost.tokens, cost.reduction) == (manifests["adapter"]["tokens"], manifests["pruned"]["reduction"])
    assert cost.parameters == manifests["pruned"]["parameters"]["after"]
    assert "Held-out perplexity over training steps" in [title for title, *_ in all_plots(table)]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_goes_to_stdout_or_to_a_file(lors: Lors, tmp_path: Path, kind: str) -> None:
    run, file = make_run(tmp_path / "run"), tmp_path / f"some/where/table{SUFFIXES[kind]}"
    lors("report", run)  # says once that nothing vouches for the edits of these manifests
    shown = lors("report", run, "--format", kind)
    assert shown.stderr == ""
    assert lors("report", run, "--output", file).stdout.strip() == str(file)
    assert file.read_text().strip() == shown.stdout.strip()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_directory_gets_every_format(lors: Lors, tmp_path: Path) -> None:
    shown = lors("report", make_run(tmp_path / "run"), "--output", tmp_path / "out")
    expected = {"report.md", "report.csv", "report.tex", "report.json", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert {Path(line).name for line in shown.stdout.splitlines()} == expected


def test_what_is_left_out_is_named_and_strict_refuses(lors: Lors, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/good")
    edit_json(make_run(tmp_path / "runs/bad") / "eval/results.json", models__dense__sparsity=0.4)
    shown = lors("report", tmp_path / "runs")
    for stream in (shown.stdout, shown.stderr):
        assert f"{tmp_path}/runs/bad" in stream
        assert "its digest differs" in stream
    output = tmp_path / "table.md"
    refused = lors("report", tmp_path / "runs", "--strict", "--output", output, status=2)
    assert "its digest differs" in refused.stderr
    assert not output.exists()


def test_a_damaged_manifest_of_a_model_that_is_reported_is_named(lors: Lors, tmp_path: Path) -> None:
    manifest = make_run(tmp_path / "run") / "pruned/lors.json"
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
    shown = lors("report", tmp_path / "run")
    for stream in (shown.stdout, shown.stderr):
        assert f"{manifest} is damaged" in " ".join(stream.split())
    lors("report", tmp_path / "run", "--strict", status=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing"], "missing, which does not exist"),
        (["run", "--format", "markdwon"], "did you mean 'markdown'?"),
        (["run", "--output", "table.docx"], "a file that ends in .txt"),
        (["run", "--output", "run/eval/results.json"], "this would change a result"),
        (["run", "--format", "csv", "--output", "run"], "a directory"),
        (["run", "--output", "file/table.md"], "a directory that can be made"),
    ],
)
def test_wrong_requests_are_refused(
    lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    before = (run / "eval/results.json").read_bytes()
    assert expected in lors("report", *arguments, status=2).stderr
    assert (run / "eval/results.json").read_bytes() == before


def test_a_damaged_manifest_behind_a_model_is_named(lors: Lors, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    whole = lors("report", run)
    assert "left out" not in whole.stderr
    (run / "adapter/lors.json").write_text("{}")
    said = lors("report", run)
    assert f"left out: {run}/adapter: {run}/adapter/lors.json is damaged" in said.stderr
    assert said.stdout != whole.stdout
    assert "lors.json is damaged" in lors("report", run, "--strict", status=2).stderr


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("eval", {"config": {"output_dir": [[]], "model": "m"}}),
        ("eval", {"request__settings": {"task_files": [1]}}),
        ("pruned", {"config": {"model": 3}}),
    ],
)
def test_old_manifests_of_wrong_types_are_named_among_others(
    lors: Lors, tmp_path: Path, place: str, wrong: dict[str, Any]
) -> None:
    make_run(tmp_path / "runs/good")
    alone = lors("report", tmp_path / "runs", "--format", "csv").stdout
    run = make_run(tmp_path / "runs/wrong")
    edit_json(run / place / "lors.json", **wrong)
    said = lors("report", tmp_path / "runs", "--format", "csv")
    assert f"left out: {run}: one of {run}/*/lors.json" in said.stderr
    assert said.stdout == alone
    assert str(run) in lors("report", run, status=2).stderr


def test_seeds_on_the_command_line(lors: Lors, tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"runs/{seed}", train={"seed": seed})
    assert "2 seeds" not in lors("report", tmp_path / "runs").stdout
    assert "wanda + lors r=16, 2 seeds" in lors("report", tmp_path / "runs", "--over-seeds").stdout


def test_the_command_imports_no_torch() -> None:
    import subprocess
    import sys

    script = "import sys, lors_cli.tools.report, lors_cli.reporting.page; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

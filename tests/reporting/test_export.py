import csv
import io
import json
from pathlib import Path

import pytest

from lors_cli.reporting import export
from lors_cli.tools.report import collect
from tests.reporting.synthetic import make_run


def test_csv_has_plain_numbers_and_where_they_come_from(runs: Path) -> None:
    table = collect([runs])
    rows = list(csv.DictReader(io.StringIO(export.as_csv(table))))
    assert [row["kind"] for row in rows] == ["dense", "pruned", "tuned", "tuned", "tuned"]
    spp = next(row for row in rows if row["method"] == "wanda + spp r=16")
    measured = json.loads((runs / "run1/eval/results.json").read_text())["models"]["merged"]
    assert float(spp["arc_easy"]) == measured["tasks"]["arc_easy"]["acc"]
    assert float(spp["arc_easy error"]) == measured["tasks"]["arc_easy"]["acc_stderr"]
    assert float(spp["perplexity"]) == measured["perplexity"]["value"]
    assert float(spp["tokens"]) == 1_000_000
    assert spp["run"] == str(runs / "run1")
    assert spp["digest"] == measured["digest"]
    assert spp["eval_digest"] == json.loads((runs / "run1/eval/lors.json").read_text())["digest"]
    assert spp["hardware"] == "machine x86_64, cpu_threads 2"


def test_json_has_tests_provenance_and_what_was_left_out(runs: Path) -> None:
    content = json.loads(export.as_json(collect([runs])))
    assert [one["path"] for one in content["left_out"]] == [str(runs / "edited")]
    tests = {(test["column"], test["this"]): test for test in content["tests"]}
    perplexity = tests["perplexity", "wanda + spp r=16"]
    assert (perplexity["tested"], perplexity["test"], perplexity["different"]) == (True, "bootstrap", True)
    assert 0 < perplexity["low"] <= perplexity["difference"] <= perplexity["high"]
    accuracy = tests["arc_easy", "wanda + spp r=16"]
    assert (accuracy["p"], accuracy["only_this"], accuracy["only_best"], accuracy["items"]) == (1.0, 0, 0, 8)
    row = content["groups"][1]["rows"][1]
    assert set(row["provenance"][0]["stages"]) == {"prune", "train", "merge", "eval"}
    assert row["provenance"][0]["stages"]["train"]["versions"]["torch"] == "2.13.0"
    assert row["provenance"][0]["settings"]["train"]["learning_rate"] == 2e-5


def test_infinities_are_strict_json(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", losses={"dense": [4000.0], "pruned": [4000.0], "merged": [1e6]})
    shown = export.as_json(collect([run]))
    json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_csv_of_mixed_settings_says_them_in_the_names(runs: Path) -> None:
    other = make_run(runs / "run3", train={"rank": 64}, settings={"dtype": "bfloat16"})
    header = export.as_csv(collect([runs])).splitlines()[0]
    assert other.is_dir()
    for dtype in ("float32", "bfloat16"):
        assert f"arc_easy (dtype {dtype})" in header

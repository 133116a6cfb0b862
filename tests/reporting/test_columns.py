"""What may stand in one column, and what is said where numbers may not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lors_cli.reporting import export, page, text
from lors_cli.reporting.table import line_notes
from lors_cli.tools.report import collect
from tests.reporting.common import edit_results, headings, number, said, value
from tests.reporting.synthetic import make_run

TASK = "models__{}__tasks__arc_easy__{}"


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({TASK: ("shots", 5)}, "shots 5"),
        ({TASK: ("version", 2.0)}, "version 2.0"),
        ({TASK: ("n", 4)}, "items 4"),
        ({"settings__dtype": "bfloat16"}, "dtype bfloat16"),
        ({"settings__backend": "vllm"}, "backend vllm"),
    ],
)
def test_other_settings_are_another_column_and_say_so(tmp_path: Path, changes: dict[str, Any], differs: str) -> None:
    make_run(tmp_path / "a", losses={})
    other = make_run(tmp_path / "b", losses={}, train={"rank": 4})
    for key, change in changes.items():
        for model in ("dense", "pruned", "merged"):
            where = key.format(model, change[0]) if "{}" in key else key
            edit_results(other, **{where: change[1] if "{}" in key else change})
    table = collect([tmp_path])
    assert headings(table)[:2] == ["arc_easy [a]", "arc_easy [b]"]
    assert (value(table, "wanda + lors r=4", "arc_easy [a]"), value(table, "wanda + lors r=16", "arc_easy [b]")) == (
        None,
        None,
    )
    assert f"[b] arc_easy with {differs}" in said(table)


@pytest.mark.parametrize(
    ("key", "change", "differs"),
    [
        ("settings__perplexity__sequence_length", 512, "sequence length 512"),
        ("models__{}__perplexity__token_digest", "beef", "tokens beef"),
        ("models__{}__perplexity__tokens", 99, "predicted tokens 99"),
        ("settings__perplexity__bos", True, "BOS True"),
    ],
)
def test_perplexity_of_other_tokens_is_another_column(tmp_path: Path, key: str, change: Any, differs: str) -> None:
    make_run(tmp_path / "a", answers={})
    other = make_run(tmp_path / "b", answers={}, train={"rank": 4})
    for model in ("dense", "pruned", "merged"):
        edit_results(other, **{key.format(model): change})
    table = collect([tmp_path])
    assert headings(table)[:2] == ["perplexity [a]", "perplexity [b]"]
    assert f"[b] perplexity with {differs}" in said(table)
    assert not any(cell.tied or cell.best for entry in table.entries for cell in entry.cells)


def test_the_same_tokens_from_another_file_are_one_column(tmp_path: Path) -> None:
    make_run(tmp_path / "a", answers={})
    other = make_run(tmp_path / "b", answers={}, train={"rank": 4})
    edit_results(other, settings__perplexity__dataset={"path": "/elsewhere/wikitext2_test.jsonl"})
    assert headings(collect([tmp_path]))[0] == "perplexity"


def test_averages_are_over_what_a_model_has_and_nothing_is_averaged_over_less(tmp_path: Path) -> None:
    def answers(*tasks: str) -> dict[str, Any]:
        return {name: {task: [1, 0, 1, 1] for task in tasks} for name in ("dense", "pruned", "merged")}

    full, part = answers("x", "y", "z"), answers("x", "y")
    full["merged"] = {"x": [1, 0, 0, 0], "y": [1, 1, 0, 0], "z": [1, 1, 1, 0]}
    make_run(tmp_path / "a", losses={}, answers=full)
    make_run(tmp_path / "b", losses={}, answers={"merged": part["merged"]}, models=["merged"], train={"rank": 4})
    table = collect([tmp_path])
    average = number(table, "wanda + lors r=16", "average [a]")
    assert average.value == pytest.approx((0.25 + 0.5 + 0.75) / 3)
    errors = [math.sqrt(mean * (1 - mean) / 3) for mean in (0.25, 0.5, 0.75)]
    assert average.error == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 3)
    assert value(table, "wanda + lors r=4", "average [a]") is None
    assert "[a] average over x, y, z; only for models that have all of them" in said(table)


def test_of_a_group_of_tasks_only_the_whole_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", losses={})
    edit_results(run, **{TASK.format(model, "group"): "science" for model in ("dense", "pruned", "merged")})
    assert "arc_easy" not in headings(collect([run]))


def test_numbers_that_are_none_and_cut_prompts_are_said_of_their_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    edit_results(
        run,
        models__merged__tasks__arc_easy__truncated=2,
        models__merged__tasks__arc_easy__total=1000,
        models__dense__tasks__arc_easy__acc=math.nan,
        models__pruned__perplexity__value=math.inf,
        models__dense__perplexity__positions=64,
    )
    table = collect([tmp_path])
    notes = line_notes(table)
    of = {entry.line.label: [notes[mark] for mark in entry.marks] for entry in table.entries}
    lost = "arc_easy: 2 of 8 prompts were longer than the model's positions and lost their beginning"
    assert of["wanda + lors r=16"] == [lost]
    assert "arc_easy gave nan, which is no measurement" in of["dense"]
    assert "perplexity on windows that are longer than the model's 64 positions" in of["dense"]
    assert "perplexity gave inf, which is no measurement" in of["wanda"]
    assert value(table, "dense", "arc_easy") is value(table, "wanda", "perplexity") is None
    assert "8 of 1000 items" in said(table)
    for shown in (text.plain(table), text.markdown(table), text.latex(table), export.as_csv(table), page.render(table)):
        assert "lost their beginning" in shown
    exported = json.loads(export.as_json(table), parse_constant=pytest.fail)
    assert lost in [note["text"] for note in exported["notes"]]

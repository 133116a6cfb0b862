"""Which runs are reported, what is left out and named, and where a row comes from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lors_cli.errors import RequestError
from lors_cli.reporting.table import Table
from lors_cli.tools.report import collect
from tests.reporting.synthetic import edit_json, make_run, resign


def left(table: Table) -> dict[str, str]:
    return {one.path.name: one.reason for one in table.left_out}


def kinds(table: Table) -> list[str]:
    return [entry.line.row.kind for entry in table.entries]


def test_runs_are_found_at_any_depth_once(tmp_path: Path) -> None:
    make_run(tmp_path / "x/y/one")
    make_run(tmp_path / "two", train={"rank": 4})
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "x/loop").symlink_to(tmp_path)
    (tmp_path / "x/notes").mkdir()
    table = collect([tmp_path, tmp_path / "two", tmp_path / "two/eval"])
    assert kinds(table) == ["dense", "pruned", "tuned", "tuned"]
    assert not table.left_out


DAMAGES: dict[str, Any] = {
    "its digest differs": lambda run: edit_json(run / "eval/results.json", models__merged__tasks__arc_easy__acc=0.99),
    "it has no eval/": lambda run: shutil.rmtree(run / "eval"),
    "has no lors.json": lambda run: (run / "eval/lors.json").unlink(),
    "has no results.json": lambda run: (run / "eval/results.json").unlink(),
    "cannot be read": lambda run: (run / "eval/results.json").write_text('{"models": {'),
    "is damaged": lambda run: (run / "eval/lors.json").write_text("{"),
    "is not one that lors wrote": lambda run: (run / "eval/lors.json").write_text("[]"),
    "it has no seal, as all of lors 7.0 have": lambda run: edit_json(
        run / "eval/lors.json", versions={"lors_cli": "7.0"}
    ),
    "is of another stage": lambda run: edit_json(run / "eval/lors.json", stage="prune"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_run_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, reason: str) -> None:
    make_run(tmp_path / "good")
    DAMAGES[reason](make_run(tmp_path / "bad", train={"rank": 4}))
    table = collect([tmp_path])
    assert kinds(table) == ["dense", "pruned", "tuned"]
    assert list(left(table)) == ["bad"]
    assert reason in left(table)["bad"]
    with pytest.raises(RequestError, match="/bad: "):
        collect([tmp_path], strict=True)


def test_a_damaged_manifest_of_an_evaluation_has_only_the_remedy_that_works(tmp_path: Path) -> None:
    """Without its manifest, which elsewhere may be deleted, an evaluation would be left out still."""
    make_run(tmp_path / "good")
    DAMAGES["is damaged"](make_run(tmp_path / "bad"))
    (one,) = collect([tmp_path]).left_out
    assert "delete" not in one.reason + one.remedy
    assert "lors eval" in one.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"models": {}},
        {"models__dense": "0.5"},
        {"models__dense__sparsity": None},
        {"models__dense__perplexity": {"value": "low"}},
        {"models__dense__tasks__arc_easy": 0.5},
        {"settings": None},
    ],
)
def test_results_of_another_shape_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    make_run(tmp_path / "good")
    run = make_run(tmp_path / "bad", train={"rank": 4})
    edit_json(run / "eval/results.json", **change)
    resign(run / "eval")
    assert "not as lors writes it" in left(collect([tmp_path]))["bad"]


def test_unfinished_work_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (tmp_path / "begun/.pruned.partial").mkdir(parents=True)
    (tmp_path / "good/.eval.partial").mkdir()
    unfinished = {str(one.path.relative_to(tmp_path)): one for one in collect([tmp_path]).left_out}
    assert set(unfinished) == {"begun", "begun/.pruned.partial", "good/.eval.partial"}
    assert unfinished["begun/.pruned.partial"].remedy == "`lors prune` finishes it"


def test_a_pruned_model_that_reported_runs_share_is_not_missed(tmp_path: Path) -> None:
    shared = make_run(tmp_path / "a")
    run = make_run(tmp_path / "a/sweep/run")
    for name in ("adapter", "merged", "eval"):
        shutil.rmtree(shared / name)
    shutil.rmtree(run / "pruned")
    for name in ("adapter", "merged"):
        edit_json(
            run / name / "lors.json", input_paths={"pruned": str(shared / "pruned"), "adapter": str(run / "adapter")}
        )
    table = collect([tmp_path])
    assert not table.left_out
    assert table.entries[-1].line.label == "wanda + lors r=16"
    assert not table.entries[-1].marks


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "only")
    shutil.rmtree(run / "eval")
    with pytest.raises(RequestError) as refused:
        collect([tmp_path])
    assert [problem.got for problem in refused.value.problems] == [f"{run}: it has no eval/, so nothing was measured"]


def test_paths_without_runs_are_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(RequestError) as refused:
        collect([tmp_path / "empty", tmp_path / "file.json", tmp_path / "no"])
    assert [problem.got.partition(", ")[2] for problem in refused.value.problems] == [
        "which has none in it",
        "a file",
        "which does not exist",
    ]


def test_a_model_that_was_made_again_is_not_the_one_that_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    edit_json(run / "merged/lors.json", digest="another")
    table = collect([run])
    assert kinds(table) == ["dense", "pruned"]
    assert "made again after it was evaluated" in left(table)["merged"]


def test_an_adapter_that_was_made_again_tells_nothing_about_the_merged_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    edit_json(run / "adapter/lors.json", digest="another", tokens=77)
    table = collect([run])
    tuned = table.entries[-1]
    assert tuned.line.label == "wanda + lors r=16"  # as the merge says
    assert tuned.line.row.cost.tokens is None
    assert tuned.marks == ["1"]
    assert "made again" in tuned.line.row.notes[0]


def test_models_that_are_gone_keep_their_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for name in ("pruned", "adapter", "merged"):
        shutil.rmtree(run / name)
    table = collect([run])
    assert [entry.line.label for entry in table.entries] == ["dense", "wanda", "wanda + lors r=16"]
    assert all("is gone" in entry.line.row.notes[0] for entry in table.entries[1:])
    assert table.entries[-1].line.row.cost.size_bytes is None


def test_a_folder_of_runs_may_have_moved(tmp_path: Path) -> None:
    make_run(tmp_path / "before/run")
    (tmp_path / "before").rename(tmp_path / "after")
    table = collect([tmp_path / "after"])
    assert kinds(table) == ["dense", "pruned", "tuned"]
    assert not any(entry.marks for entry in table.entries)


def test_a_pruned_model_from_elsewhere_is_the_one_that_was_tuned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    shutil.rmtree(run / "pruned")
    for path in (run / f"{name}/lors.json" for name in ("eval", "adapter", "merged")):
        edit_json(path, config__train__input="/models/sparse", config__prune=None)
    table = collect([run])
    assert [(group.pruning, group.goal, len(group.entries)) for group in table.groups] == [
        ("", "", 1),
        ("pruned elsewhere", "50%", 2),
    ]


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", model="/one/llama")
    make_run(tmp_path / "b", model="/two/llama")
    table = collect([tmp_path])
    models = {group.model for group in table.groups}
    assert len(models) == 2
    assert all(model.startswith("llama (") for model in models)


def test_every_file_of_two_hundred_runs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        make_run(tmp_path / f"run{number}", train={"learning_rate": 1e-6 * (number + 1)})
    opened: dict[str, int] = {}
    read_text, read_bytes = Path.read_text, Path.read_bytes

    def counted(path: Path, *args: Any, **options: Any) -> str:
        opened[str(path)] = opened.get(str(path), 0) + 1
        return read_text(path, *args, **options)

    def counted_bytes(path: Path) -> bytes:
        if path.suffix != ".gz":
            opened[str(path)] = opened.get(str(path), 0) + 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_text", counted)
    monkeypatch.setattr(Path, "read_bytes", counted_bytes)
    table = collect([tmp_path])
    assert len(table.entries) == 202
    assert set(opened.values()) == {1}
    assert len(opened) == 200 * 5  # four manifests and the results
    assert json.loads(read_text(tmp_path / "run0/eval/results.json"))

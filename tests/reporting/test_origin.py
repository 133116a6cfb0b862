"""Where models come from: models of other runs, and adapters that were trained on a smaller model."""

import json
import shutil
from pathlib import Path

import pytest

from lors_cli.artifacts import digest
from lors_cli.reporting import export, text
from lors_cli.reporting.origin import ORIGINAL
from lors_cli.tools.report import collect
from tests.reporting.common import headings, labels, line, number, said, value
from tests.reporting.loram import MODEL, make_loram, make_sibling
from tests.reporting.synthetic import LOSSES, edit_json, evaluate, make_run, resign, write_json

PRUNED = "structured_random 65%"
TUNED, RECOVERED = (f"{PRUNED}, aligned + lora r=8 on {model}" for model in ("the pruned model", ORIGINAL))


def test_the_four_corners_are_in_one_table(tmp_path: Path) -> None:
    make_loram(tmp_path / "loram")
    make_sibling(tmp_path / "sibling")
    table = collect([tmp_path])
    assert [(group.model, [entry.line.label for entry in group.entries]) for group in table.groups] == [
        ("llama-7b", ["dense", "lora r=8"]),
        ("llama-13b", ["dense"]),
        ("llama-13b", [PRUNED, f"{PRUNED}, aligned", RECOVERED, TUNED]),
    ]
    assert not table.left_out
    assert not any(entry.marks for entry in table.entries)
    best = {entry.line.label for entry in table.entries for cell in entry.cells if cell.best}
    assert best == {RECOVERED}


def test_every_row_is_followed_to_its_trainings_and_to_the_original(tmp_path: Path) -> None:
    make_loram(tmp_path / "run")
    table = collect([tmp_path])
    stages = {label: list(export.stages(line(table, label).line.row)) for label in labels(table)}
    assert stages == {
        "dense": ["eval"],
        PRUNED: ["prune", "eval"],
        f"{PRUNED}, aligned": ["prune", "align", "eval"],
        TUNED: ["prune", "align", "train", "eval"],
        RECOVERED: ["prune", "align", "train", "recover", "merge", "eval"],
    }
    dense = line(table, "dense").line.row
    assert {entry.line.row.dense for entry in table.entries} == {("llama-13b", dense.digest)}


@pytest.mark.parametrize("align", [True, False])
def test_costs_are_those_of_the_training_and_the_reduction_that_of_the_model_in_it(tmp_path: Path, align: bool) -> None:
    make_loram(tmp_path / "run", align=align)
    table = collect([tmp_path])
    first = headings(table).index("reduction")
    shown = {entry.line.label: list(map(text.measured, entry.cells))[first:] for entry in table.entries}
    size = text.amount((tmp_path / "run/merged/lors.json").stat().st_size, "B")
    named = f"{PRUNED}, aligned" if align else PRUNED
    sizes, trained = ["reduction", "parameters"], ["tokens", "trainable", "‰", "training", "peak memory", "size"]
    assert headings(table)[first:] == [*sizes, *trained]
    training = ["1 M", "6 k", "1", "1.0 min", "2 GB"]  # ‰ of what is left
    assert shown[f"{named} + lora r=8 on the pruned model"] == ["2.17x", "6 M", *training, "-"]
    assert shown[f"{named} + lora r=8 on the original"] == ["2.17x", "-", *training, size]
    assert shown["dense"] == ["-"] * 8
    assert shown[PRUNED][:3] == ["2.17x", "6 M", "-"]
    if align:
        assert shown[named][:6] == ["2.17x", "6 M", "7 k", "-", "-", "1.0 min"]
    assert "2.17x" in text.markdown(table)


def test_models_that_keep_their_size_have_no_reduction(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert "reduction" not in headings(collect([tmp_path]))
    make_loram(tmp_path / "b")
    assert value(collect([tmp_path]), "wanda + lors r=16", "reduction") is None


def test_recovery_is_of_what_pruning_cost_and_the_original_lost_nothing(tmp_path: Path) -> None:
    make_loram(tmp_path / "run", align=False)
    table = collect([tmp_path])
    recovery = number(table, f"{PRUNED} + lora r=8 on the pruned model", "recovery, perplexity")
    assert 0 < recovery.value < 1
    assert value(table, f"{PRUNED} + lora r=8 on the original", "recovery, perplexity") is None


def test_other_ratios_are_other_groups(tmp_path: Path) -> None:
    for ratio in (0.65, 0.75):
        make_loram(tmp_path / str(ratio), ratio=ratio)
    assert [(group.pruning, group.goal) for group in collect([tmp_path]).groups][1:] == [
        ("structured_random 65%", "65%"),
        ("structured_random 75%", "75%"),
    ]


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("adapter", "the adapter that was merged is gone"),
        ("recovered", "the adapter that was merged is gone"),
        ("aligned", "the pruned model that it was made from is gone or was made again; how, is told by the config"),
        ("pruned", "the pruned model that it was made from is gone or was made again; how, is told by the config"),
        ("merged", "its directory is gone; how it was made is told by the adapter beside it and the config of its"),
    ],
)
def test_what_is_gone_is_told_by_configs_and_said(tmp_path: Path, gone: str, note: str) -> None:
    run = make_loram(tmp_path / "run")
    shutil.rmtree(run / gone)
    table = collect([tmp_path])
    assert RECOVERED in labels(table)
    assert note in "".join(line(table, RECOVERED).line.row.notes)
    assert note in said(table)
    assert {group.pruning for group in table.groups} == {"", PRUNED}


def test_a_merged_model_that_was_dropped_is_known_by_its_adapter_unless_that_is_newer(tmp_path: Path) -> None:
    run = make_loram(tmp_path / "run")
    shutil.rmtree(run / "merged")
    origin = line(collect([tmp_path]), RECOVERED).line.row.origin
    assert origin.train is not None
    assert origin.prune is not None
    assert (origin.train["rank"], origin.prune["ratio"], list(origin.manifests)) == (
        *(8, 0.65),
        ["recover", "train", "align", "prune"],
    )
    edit_json(run / "recovered/lors.json", created="2027-01-01T00:00:00+00:00")
    assert not line(collect([tmp_path]), RECOVERED).line.row.origin.manifests


def test_an_alignment_that_was_made_again_is_not_the_one_that_was_trained_on(tmp_path: Path) -> None:
    run = make_loram(tmp_path / "run")
    edit_json(run / "aligned/lors.json", digest="another")
    table = collect([tmp_path])
    assert [one.path.name for one in table.left_out] == ["aligned"]
    assert "align" not in line(table, RECOVERED).line.row.origin.manifests


def test_a_path_to_a_model_of_another_run_has_its_own_original(tmp_path: Path) -> None:
    merged = make_sibling(tmp_path / "elsewhere/sibling") / "merged"
    made = json.loads((merged / "lors.json").read_text())["digest"]
    models = {"dense": (Path(MODEL), digest.of_value(MODEL), 0.0), str(merged): (merged, made, 0.0)}
    evaluate(tmp_path / "run", models, {"model": MODEL, "output_dir": str(tmp_path / "run")}, answers={}, losses=LOSSES)
    table = collect([tmp_path / "run"])
    assert [(group.model, [entry.line.label for entry in group.entries]) for group in table.groups] == [
        ("llama-7b", ["lora r=8"]),
        ("llama-13b", ["dense"]),
    ]


def test_seeds_of_all_stages_are_one_line_and_places_of_the_adapter_two(tmp_path: Path) -> None:
    for seed in range(2):
        make_loram(tmp_path / str(seed), seed=seed)
    table = collect([tmp_path], over_seeds=True)
    two = [f"{label}, 2 seeds" for label in (PRUNED, f"{PRUNED}, aligned", RECOVERED, TUNED)]
    assert labels(table) == ["dense", *two]


def test_the_pruned_model_of_a_run_that_prunes_nothing_is_the_dense_one(tmp_path: Path) -> None:
    run = make_sibling(tmp_path / "run")
    results = json.loads((run / "eval/results.json").read_text())
    del results["models"]["dense"]
    write_json(run / "eval/results.json", results)
    resign(run / "eval")
    assert labels(collect([tmp_path])) == ["dense", "lora r=8"]
    shutil.rmtree(run / "merged")
    assert labels(collect([tmp_path])) == ["dense", "lora r=8"]

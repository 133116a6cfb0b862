"""Which rows there are, how they are called, what is marked, and what is said about it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.reporting import text
from lors_cli.tools.report import collect
from tests.reporting.common import edit_results, headings, labels, line, number, said, value
from tests.reporting.synthetic import LOSSES, TOKENS, edit_json, make_run, resign, write_json


def test_dense_first_then_each_pruning_with_what_was_tuned_from_it(tmp_path: Path) -> None:
    make_run(tmp_path / "d", train={"method": "spp"}, prune={"method": "sparsegpt"})
    make_run(tmp_path / "a", train={"method": "lors", "rank": 16})
    make_run(tmp_path / "b", train={"method": "lors", "rank": 4})
    make_run(
        tmp_path / "c", train={"method": "lora", "init": "eva"}, merge={"apply_mask": True}, prune={"sparsity": 0.5}
    )
    make_run(tmp_path / "e", model="/models/another")
    table = collect([tmp_path])
    assert [(group.model, group.pruning, group.goal) for group in table.groups] == [
        ("another", "", ""),
        ("another", "wanda", "2:4"),
        ("llama-7b", "", ""),
        ("llama-7b", "sparsegpt", "2:4"),
        ("llama-7b", "wanda", "2:4"),
        ("llama-7b", "wanda", "50%"),
    ]
    assert labels(table)[3:] == [
        *("dense", "sparsegpt", "sparsegpt + spp r=16", "wanda", "wanda + lors r=4", "wanda + lors r=16"),
        *("wanda", "wanda + lora* r=16 init=eva"),
    ]
    assert len(line(table, "dense").line.row.runs) == 1


def test_a_model_that_several_runs_measured_is_shown_once_with_everything(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses={})
    make_run(tmp_path / "b", answers={}, train={"rank": 4})
    table = collect([tmp_path])
    dense = line(table, "dense")
    assert labels(table) == ["dense", "wanda", "wanda + lors r=4", "wanda + lors r=16"]
    assert [run.directory.name for run in dense.line.row.runs] == ["a", "b"]
    assert [column.name for column in dense.line.row.measures] == ["arc_easy", "perplexity"]


def test_equal_models_with_other_numbers_are_two_rows_and_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", answers={"dense": [0, 0, 0, 0, 1, 0, 0, 0], "pruned": [1, 0, 0, 1, 0, 0, 0, 0]})
    table = collect([tmp_path])
    dense = [entry for entry in table.entries if entry.line.label.startswith("dense")]
    assert [entry.line.label for entry in dense] == ["dense [a]", "dense [b]"]
    assert all(entry.marks for entry in dense)
    assert f"the same model, measured in the same way, has other numbers in {tmp_path}/b" in said(table)


def test_a_tuned_model_that_was_evaluated_in_two_places_is_one_row(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", losses={})
    again = make_run(tmp_path / "b", answers={})
    for name in ("pruned", "adapter", "merged"):
        shutil.rmtree(again / name)
    edit_results(again, models__merged__path=str(first / "merged"), models__pruned__path=str(first / "pruned"))
    table = collect([tmp_path])
    assert labels(table) == ["dense", "wanda", "wanda + lors r=16"]
    assert [column.name for column in table.entries[-1].line.row.measures] == ["arc_easy", "perplexity"]


def test_settings_tell_runs_of_one_method_apart(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-5), ("b", 3e-5)):
        make_run(tmp_path / name, train={"learning_rate": rate})
    make_run(tmp_path / "copy", train={"learning_rate": 1e-5})
    assert labels(collect([tmp_path]))[2:] == [
        "wanda + lors r=16 learning_rate=1e-05 [a]",
        "wanda + lors r=16 learning_rate=1e-05 [copy]",
        "wanda + lors r=16 learning_rate=3e-05",
    ]


def test_recovery_by_hand(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    table = collect([tmp_path])
    label = "wanda + lors r=16"
    accuracy = number(table, label, "recovery, arc_easy")
    assert accuracy.value == pytest.approx((4 / 8 - 2 / 8) / (7 / 8 - 2 / 8))
    dense, pruned, tuned = (math.exp(sum(LOSSES[name]) / 3 / TOKENS) for name in ("dense", "pruned", "merged"))
    perplexity = number(table, label, "recovery, perplexity")
    assert perplexity.value == pytest.approx((tuned - pruned) / (dense - pruned))
    assert value(table, "wanda", "recovery, perplexity") is None


def test_nothing_recovers_what_pruning_did_not_cost(tmp_path: Path) -> None:
    make_run(tmp_path / "a", answers={}, losses={**LOSSES, "pruned": [loss + 0.1 for loss in LOSSES["dense"]]})
    assert "recovery, perplexity" not in headings(collect([tmp_path]))
    # one that is better than the dense one, as by chance on a task that neither can do
    swapped = {**LOSSES, "dense": LOSSES["pruned"], "pruned": LOSSES["dense"]}
    answers = {
        "dense": {"arc_easy": [1, 0, 0, 0]},
        "pruned": {"arc_easy": [1, 1, 0, 0]},
        "merged": {"arc_easy": [1] * 4},
    }
    make_run(tmp_path / "b", losses=swapped, answers=answers)
    assert not any("recovery" in heading for heading in headings(collect([tmp_path / "b"])))


def test_recovery_needs_the_same_measurement(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", answers={})
    edit_results(run, models__pruned__perplexity__token_digest="beef")
    assert not any("recovery" in heading for heading in headings(collect([tmp_path])))


GOOD = [1] * 18 + [0] * 2
ALMOST = [1] * 17 + [0] * 3  # one item less
POOR = [0] * 10 + [1] * 8 + [0] * 2  # ten items less: p = 2 / 2^10


def test_the_best_is_marked_and_what_a_test_cannot_tell_from_it(tmp_path: Path) -> None:
    for rank, answers in ((4, ALMOST), (8, GOOD), (16, POOR)):
        merged, losses = {"merged": answers}, {"merged": [4000.0 + rank, 4100.0 + rank, 4200.0 + rank]}
        make_run(tmp_path / str(rank), train={"rank": rank}, answers=merged, losses=losses, models=["merged"])
    table = collect([tmp_path])
    marks = {
        (entry.line.label[-4:].strip(), heading.name): (cell.best, cell.tied)
        for entry in table.entries
        for heading, cell in zip(table.headings, entry.cells, strict=True)
    }
    assert marks["r=8", "arc_easy"] == (True, False)
    assert marks["r=4", "arc_easy"] == (False, True)
    assert marks["r=16", "arc_easy"] == (False, False)
    assert marks["r=4", "perplexity"] == (True, False)
    assert marks["r=8", "perplexity"] == (False, False)  # each window is a little worse
    p = {test.this[-4:].strip(): test.comparison.numbers["p"] for test in table.tests if test.column.name == "arc_easy"}
    assert p == {"r=4": 1.0, "r=16": pytest.approx(2 / 2**10)}
    assert "McNemar's exact test" in said(table)


def test_a_single_tuned_model_is_best_of_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    table = collect([tmp_path])
    assert not any(cell.best for entry in table.entries for cell in entry.cells)
    assert not table.tests


def test_what_could_not_be_tested_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", train={"rank": 4}, keep_items=False)
    table = collect([tmp_path])
    assert not any(cell.tied for entry in table.entries for cell in entry.cells)
    assert "Not tested, because no items were kept: wanda + lors r=16 and wanda + lors r=4 (arc_easy)" in said(table)


def test_costs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    shown = dict(
        zip(headings(table := collect([run])), map(text.measured, line(table, "wanda + lors r=16").cells), strict=True)
    )
    size = sum(path.stat().st_size for path in (run / "merged").iterdir())
    assert {key: shown[key] for key in ("tokens", "trainable", "‰", "training", "peak memory", "size")} == {
        "tokens": "1 M",
        "trainable": "5 k",
        "‰": "5",
        "training": "1.0 min",
        "peak memory": "2 GB",
        "size": f"{size / 1000:.3g} kB",
    }
    assert "‰ of the parameters of the blocks' linears" in said(table)
    assert "Peak memory in training: of the process on the host." in said(table)


def test_parameters_include_embeddings_where_the_files_are_there(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path / "a")
    made = make_model(tmp_path / "model")
    shutil.copy(made / "model.safetensors", run / "merged")
    table = collect([run])
    permille = number(table, "wanda + lors r=16", "‰")
    assert permille.value == pytest.approx(5e6 / AutoModelForCausalLM.from_pretrained(made).num_parameters())
    assert "embeddings included" in said(table)


def test_memory_of_the_gpu_and_of_the_host_are_not_put_together_silently(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", train={"rank": 4})
    edit_json(other / "adapter/lors.json", peak_memory__gpu_bytes=10**9, config__device="cuda")
    assert "of the GPU for b, else of the process on the host; not comparable" in said(collect([tmp_path]))


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", keep_items=False)
    content = json.loads((run / "eval/results.json").read_text())
    for model in content["models"].values():
        del model["digest"]
        del model["tasks"]["arc_easy"]["metric"]
        del model["perplexity"]["stderr"]
        model["tasks"]["arc_easy"] |= {"acc_norm": 0.9, "acc_norm_stderr": 0.1}
    del content["settings"]["backend"]
    write_json(run / "eval/results.json", content)
    resign(run / "eval")
    table = collect([run])
    assert labels(table) == ["dense", "wanda", "wanda + lors r=16"]
    assert text.measured(line(table, "dense").cells[0]) == "87.50 ± 12.50"
    assert not table.left_out

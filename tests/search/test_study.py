"""What a sweep file may say, and the configs that it comes to."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lors_cli.search import sweep_file
from lors_cli.search.study import Study
from tests.search import conftest

Written = Callable[..., Path]
ARM = {"a": {"set": {"train.method": "spp"}}}


@pytest.fixture
def written(write_config: Callable[..., Path], tmp_path: Path) -> Written:
    """Write a sweep file over the config of the pico model."""

    def write(**content: Any) -> Path:
        write_config()
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps({"config": "config.yaml", "arms": ARM, **content}))
        return path

    return write


problems = partial(conftest.problems, Study)


def test_every_mistake_of_a_file_is_reported_at_once_and_unknown_keys_name_the_nearest(written: Written) -> None:
    wrong = problems(written(arms={"a": {"grdi": {}}, "b/c": {}}, seeds=[-1], budgt={}, choose={"by": "accuracy"}))
    assert {"arms.a.grdi", "seeds[0]", "budgt", "choose.by"} < set(wrong)
    assert "did you mean 'grid'" in wrong["arms.a.grdi"]
    assert "did you mean 'budget'" in wrong["budgt"]
    assert any("b/c" in key for key in wrong)
    assert "one of steps, tokens and seconds" in problems(written(budget={"steps": 1, "tokens": 2}))["budget.steps"]
    assert "budget.time_of" in problems(written(budget={"steps": 1, "time_of": "b"}))
    assert "names of starts and arms" in problems(written(only=["b"]))["only"]
    assert "no seed in arms" in problems(written(seeds=[1], arms={"a": {"set": {"seed": 2}}}))["arms"]
    assert "no train.epochs in arms" in problems(written(budget={"steps": 1}, every={"train.epochs": [1]}))["arms"]
    two = {"a": {"grid": {"train.rank": [2, 4], "train.alpha": [1, 2]}}}
    assert "rising numbers" in problems(written(arms=two, choose={"extend": 1}))["arms.a.grid"]


def test_the_example_of_the_docs_has_every_key_and_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/sweep.md").read_text()
    (example,) = [part for part in text.split("```") if part.startswith("yaml\n")]
    (tmp_path / "sweep.yaml").write_text(example.removeprefix("yaml\n"))
    content, _ = sweep_file.load(tmp_path / "sweep.yaml", [])
    assert content.model_fields_set == set(sweep_file.SweepFile.model_fields)
    assert content.wanted(content.starts) == ["wanda"]


def test_mistakes_in_the_settings_of_arms_and_of_the_config_are_reported_together(written: Written) -> None:
    path = written(arms={"a": {"set": {"train.rnk": 1}}, "b": {"set": {"train.method": "los"}}})
    wrong = problems(path)
    assert set(wrong) == {"train.rnk", "train.method"}
    assert f"{path}: train.rnk" in wrong["train.rnk"]
    grid = {"a": {"grid": {"train.rank": [2, 4]}}}
    assert "train.eval_dataset, or choose.held_out" in problems(written(arms=grid))["choose.by"]


def test_an_argument_overrides_the_sweep_file_or_its_config_and_never_in_vain(written: Written, tmp_path: Path) -> None:
    study = Study(written(seeds=[3]), ["seeds=[7, 8]", "train.rank=2", f"output_dir={tmp_path / 'other'}"])
    run = study.run(study.rows[0], {}, 8)
    assert run.config.seed == 8
    assert (run.train.rank, run.train.method) == (2, "spp")
    assert run.directory == tmp_path / "other/a/seed=8"
    wrong = problems(written(seeds=[3]), "train.method=lors", "seed=1", "train.rank=2,4", "prune.sparsity=0.5")
    assert set(wrong) == {"train.method", "seed", "train.rank"}
    assert "put an axis into grid: or every:" in wrong["train.rank"]


def test_the_budget_decides_how_long_runs_are(written: Written) -> None:
    for budget, expected in (({"steps": 3}, (3, None)), ({"tokens": 640}, (None, 640)), ({"seconds": 9}, (4, None))):
        study = Study(written(budget=budget), [])
        train = study.run(study.rows[0], {}).train
        assert (train.max_steps, train.max_tokens) == expected
    assert study.run(study.rows[0], {}, steps=7).train.max_steps == 7


def test_what_runs_share_is_made_with_the_files_seed_and_measured_once(written: Written, tmp_path: Path) -> None:
    starts = {"x": {"set": {"prune.sparsity": 0.5}}, "y": {}, "whole": {"set": {"prune": None}}}
    study = Study(written(starts=starts, seeds=[4, 5]), ["eval.models=[dense, pruned, merged]"])
    assert [(start.name, start.made) for start in study.starts] == [("x", "pruned"), ("y", "pruned"), ("whole", None)]
    assert [row.name for row in study.rows] == ["x/a", "y/a"]  # an arm is trained where there is a pruning
    start, run = study.starts[0], study.run(study.rows[0], {})
    assert (start.config.seed, run.config.seed) == (0, 4)
    assert start.config.eval
    assert start.config.eval.models == ["dense", "pruned"]
    assert run.config.eval
    assert run.config.eval.models == ["merged"]
    assert run.train.input == str(tmp_path / "run/x/pruned")
    assert (start.stages, run.stages) == (["prune", "eval"], ["train", "merge", "eval"])
    assert start.before(run, again=False).stages == ["prune", "train", "merge", "eval"]


def test_a_model_that_is_there_already_is_trained_instead_of_pruning(written: Written, dense: Path) -> None:
    study = Study(written(), [f"train.input={dense}"])
    assert study.starts[0].made is None
    assert study.run(study.rows[0], {}).train.input == str(dense)


def test_the_held_out_text_is_split_into_rows_that_choose_and_rows_that_judge(
    written: Written, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    text = jsonl([{"text": str(number)} for number in range(5)], "text.jsonl")
    held_out = {"by": "perplexity", "held_out": str(text)}
    path = written(choose=held_out, arms={"a": {"grid": {"train.rank": [2, 4]}}})
    study = Study(path, [])
    study.configs.split_held_out()
    run = study.run(study.rows[0], {"train.rank": 2})
    halves = [run.config.eval, study.selecting(run).eval]
    read = [Path(one.perplexity.dataset.path).read_text() for one in halves if one and one.perplexity]
    assert [[json.loads(line)["text"] for line in half.splitlines()] for half in read] == [["1", "3"], ["0", "2", "4"]]
    assert study.selecting(run).output_dir == str(run.directory / "select")
    loss = Study(written(choose={**held_out, "by": "held_out_loss"}), [])
    chosen_on = loss.run(loss.rows[0], {}).train.eval_dataset
    assert chosen_on
    assert chosen_on.path == str(tmp_path / "run/select.jsonl")

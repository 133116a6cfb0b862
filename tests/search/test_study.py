"""What a sweep file may say, and the configs that it comes to."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lors_cli.search import outcome, sweep_file
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


def test_names_and_settings_with_dots_are_overridden_as_messages_write_them(written: Written) -> None:
    starts = {"a": {}, "wanda_0.5": {"set": {"prune.sparsity": 0.5}, "time_of": "a"}}
    path = written(starts=starts)
    wrong = problems(path)["starts.wanda_0.5.time_of"]
    assert "starts.wanda_0.5.time_of=null" in wrong
    content, _ = sweep_file.load(path, ["starts.wanda_0.5.time_of=null", "starts.wanda_0.5.set.prune.sparsity=0.6"])
    assert (content.starts["wanda_0.5"].time_of, content.starts["wanda_0.5"].set) == (None, {"prune.sparsity": 0.6})


def test_the_example_of_the_docs_has_every_key_and_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/sweep.md").read_text()
    (example,) = [part for part in text.split("```") if part.startswith("yaml\n")]
    (tmp_path / "sweep.yaml").write_text(example.removeprefix("yaml\n"))
    content, _ = sweep_file.load(tmp_path / "sweep.yaml", [])
    assert content.model_fields_set == set(sweep_file.SweepFile.model_fields)
    assert (content.wanted(content.starts), content.wanted(content.arms)) == (["wanda"], ["lors", "lora"])


def test_names_may_be_globs_and_a_start_that_is_a_measure_comes_with_those_that_need_it(written: Written) -> None:
    starts: dict[str, Any] = {name: {} for name in ("wanda_a", "wanda_b", "ria_a")}
    study = Study(written(starts=starts, arms={"lors-1": {}, "lors-2": {}, "spp": {}}, only=["wanda*", "lors*"]), [])
    assert [row.name for row in study.rows] == [f"wanda_{x}/lors-{n}" for x in "ab" for n in (1, 2)]
    limits = {"steps": 1, "time_of": "a"}
    assert "did you mean 'wanda_a'" in problems(written(starts=starts, only=["wnda_a"]))["only"]
    starts["ria_a"] = {"time_of": "wanda_a"}
    measured = Study(written(starts=starts, only=["ria_a"], budget=limits), [])
    assert [(start.name, start.counts) for start in measured.starts] == [("wanda_a", True), ("ria_a", True)]
    assert [row.name for row in measured.rows] == ["ria_a/a"]
    assert [measured.timed(start) for start in measured.starts] == [["a"], ["a"]]
    starts["whole"] = {"set": {"prune": None}}
    whole = Study(written(starts=starts, only=["ria_a", "whole"], budget=limits), [])
    assert [whole.timed(start) for start in whole.starts] == [["a"], ["a"], []]  # there is nothing to train on
    del starts["whole"]
    assert "budget of time" in problems(written(starts=starts))["starts.ria_a.time_of"]
    starts["wanda_a"] = {"time_of": "ria_a"}
    assert (
        "without a time_of of its own: wanda_b"
        in problems(written(starts=starts, budget=limits))["starts.ria_a.time_of"]
    )
    assert "an arm: a" in problems(written(compare_to="b"))["compare_to"]
    arms: dict[str, Any] = {"a": {}, "b": {}}
    assert "an arm: a" in problems(written(arms=arms, compare_to="b", only=["a"]))["compare_to"]


def test_what_is_optional_is_left_out_where_its_text_is_missing_and_nothing_else_is(
    written: Written, tmp_path: Path
) -> None:
    gone, there = str(tmp_path / "gone.jsonl"), tmp_path / "there.jsonl"
    there.write_text('{"text": "some words"}\n')

    def start(path: object) -> dict[str, Any]:
        return {"set": {"prune.calibration.dataset": str(path)}}

    texts = {"far": {"eval.perplexity.dataset": gone}, "near": {"eval.perplexity.dataset": str(there)}}
    starts = {"x_gone": start(gone), "x_there": start(there), "y": {"time_of": "x_gone"}}
    limits = {"steps": 1, "time_of": "a"}
    optional = ["x_*", "y", "far", "near"]
    study = Study(written(starts=starts, evaluations=texts, optional=optional, budget=limits), ["eval.models=[merged]"])
    assert [row.name for row in study.rows] == ["x_there/a"]
    assert set(study.left_out) == {"x_gone", "y", "far"}
    assert "gone.jsonl, which does not exist" in study.left_out["x_gone"]
    assert list(study.evaluations(study.rows[0].start.config, {"merged": "m"})) == ["near"]
    wrong = problems(written(starts={"x_gone": start(gone)}, optional=["x_*"]))
    assert "x_gone is left out" in wrong["arms"]
    assert (
        "names of starts and evaluations" in problems(written(starts=starts, optional=["z"], budget=limits))["optional"]
    )
    assert not Study(written(starts={"x": start(gone)}), []).left_out  # it is refused later, with the stage's message


def test_a_further_evaluation_measures_the_models_that_it_names(written: Written, tmp_path: Path) -> None:
    texts: dict[str, Any] = {"all": {"eval.models": ["dense", "pruned", "merged"]}, "usual": {}}
    study = Study(written(evaluations=texts), ["eval.models=[dense, pruned, merged]"])
    start, run = study.starts[0], study.run(study.rows[0], {})
    further = outcome.start_evaluations(study, start) | outcome.run_evaluations(study, run)
    measured = {name: one.eval.models for name, one in outcome.start_evaluations(study, start).items() if one.eval}
    assert measured == {"all": ["dense", str(tmp_path / "run/pruned")], "usual": ["dense"]}
    measured = {name: one.eval.models for name, one in outcome.run_evaluations(study, run).items() if one.eval}
    assert measured == {name: [str(tmp_path / "run/a/merged")] for name in texts}
    assert [one.output_dir for one in further.values()] == [f"{tmp_path}/run/a/{name}" for name in texts]


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
    read = [Path(asked.dataset.path).read_text() for one in halves if one for asked in one.perplexities.values()]
    assert [[json.loads(line)["text"] for line in half.splitlines()] for half in read] == [["1", "3"], ["0", "2", "4"]]
    assert study.selecting(run).output_dir == str(run.directory / "select")
    loss = Study(written(choose={**held_out, "by": "held_out_loss"}), [])
    chosen_on = loss.run(loss.rows[0], {}).train.eval_dataset
    assert chosen_on
    assert chosen_on.path == str(tmp_path / "run/select.jsonl")

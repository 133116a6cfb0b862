"""Sweep files on the pico model: the study of recovery as it is shipped, and searches whose numbers are made up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.config.schema import Config
from lors_cli.errors import DivergedError, LorsError
from lors_cli.search import budget, outcome, runs, sweep_file
from tests.search.conftest import KillSweep

Lors = Callable[..., Result]
Search = Callable[..., dict[str, Any]]
Perplexity = Callable[[float, int], float]  # of learning rate and seed

STUDY = Path(__file__).parents[2] / "scripts/reproduce/recovery.yaml"


@pytest.fixture
def pico(dense: Path) -> list[str]:
    """Arguments that make the study one of the pico model: two arms, two rates of one, two steps."""
    sizes = ["prune.calibration={dataset: python-topics, sequence_length: 32, samples: 4}", "train.sequence_length=32"]
    sizes += ["train.rank=4", "train.dataset.limit=3", "eval.perplexity.sequence_length=32"]
    study = ["starts={}", "evaluations={}", "only=[lors, spp]", "optional=[]"]
    study += ["seeds=[0]", "budget={steps: 2}", "choose.extend=0", "choose.held_out.limit=4"]
    grids = ["arms.lors.grid={}", "arms.spp.grid={train.learning_rate: [1e-2, 2e-2]}"]
    return [*study, *grids, *sizes, f"model={dense}", "device=cpu"]


def test_the_study_that_was_killed_ends_with_the_same_table(
    lors: Lors, pico: list[str], tmp_path: Path, kill_sweep: KillSweep
) -> None:
    # a run of an arm is the run of a config with its settings
    config, adapter = tmp_path / "config.yaml", "adapter/adapter_model.safetensors"
    config.write_text(json.dumps(sweep_file.load(STUDY, [])[0].config))
    own = [text for text in pico if text.startswith(("prune", "train", "model", "device"))]
    own += ["train.method=spp", "train.formulation=merged", "train.learning_rate=1e-2", "train.max_steps=2"]
    for stage in ("prune", "train"):
        lors(stage, config, *own, f"output_dir={tmp_path / 'one'}")

    output = tmp_path / "out"
    arguments, interrupted = [*pico, f"output_dir={output}"], output / "spp/learning_rate=0.01,seed=0"
    kill_sweep(STUDY, arguments, interrupted, ".adapter.partial")
    assert not (output / "results.md").exists()
    goes_on = lors("sweep", STUDY, *arguments)
    table = goes_on.stdout
    assert (output / "results.md").read_text() == table
    assert goes_on.stderr.count("prune: finished") == 0
    assert goes_on.stderr.count("/lors/") == 0  # that arm was done
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["pruned", "lors", "spp"]
    assert table.count("(edge)") == 1
    assert not list(output.glob("*/*/merged"))  # keep_models: false
    assert len(list(output.glob("*/*/adapter"))) == 3
    assert (interrupted / adapter).read_bytes() == (tmp_path / "one" / adapter).read_bytes()

    shutil.rmtree(interrupted)  # the only run that was interrupted is made again, without an interruption
    whole = lors("sweep", STUDY, *arguments)
    assert whole.stdout == table
    assert whole.stderr.count("train: finished") == 1


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, write_config: Callable[..., Path], lors: Lors, tmp_path: Path) -> Search:
    """Run a sweep file whose perplexity is a function of learning rate and seed; results.json, and what was trained."""

    def run(perplexity: Perplexity, *arguments: str, status: int = 0, **content: Any) -> dict[str, Any]:
        trained: list[str] = []

        def perform(config: Config, stages: list[str], *, force: bool = False) -> None:
            if config.train and "train" in stages:
                trained.append(Path(config.output_dir).name)
                number(config)

        def number(config: Config) -> float:
            if config.train is None:  # a further evaluation
                return 100 + config.seed
            return perplexity(config.train.learning_rate, config.seed)

        def models(config: Config) -> dict[str, Any]:
            measured = config.eval.models if config.eval else []
            return {name: {"perplexity": {"value": 9 if name == "pruned" else number(config)}} for name in measured}

        times: budget.Times = {}
        seconds = {"step": 1.0, "before": 1.0}
        monkeypatch.setattr(runs, "perform", perform)
        monkeypatch.setattr(budget, "measure", lambda *_, **__: times.update(a=seconds, b=seconds))
        monkeypatch.setattr(budget, "read", lambda _: times)
        monkeypatch.setattr(outcome, "models", models)
        monkeypatch.setattr(outcome, "_chosen_by", lambda _, run, force: number(run.config))
        path = tmp_path / "sweep.yaml"
        config = json.loads(write_config(eval__models=["pruned", "merged"], train__max_steps=2).read_text())
        grid = {"train.learning_rate": [1e-2, 2e-2]}
        sweep_file = {"config": config, "arms": {"a": {"grid": grid}}, "choose": {"by": "perplexity", "extend": 2}}
        path.write_text(json.dumps({**sweep_file, **content}))
        shown = lors("sweep", path, "--debug", *arguments, status=status)
        made = tmp_path / "run/results.json"
        results = json.loads(made.read_text()) if made.is_file() else {}
        return {"trained": trained, "shown": shown.stdout, "said": shown.stderr, "results": results}

    return run


def test_a_search_goes_on_at_the_edge_of_its_grid_and_the_first_seed_chooses(search: Search) -> None:
    # with the first seed 4e-2 is the best, with the second one 2e-2
    limits = {"steps": 2, "time_of": "a"}
    study = search(lambda rate, seed: abs(rate - (4e-2, 2e-2)[seed - 5]) + seed, seeds=[5, 6], budget=limits)
    rates = ("0.01", "0.02", "0.04", "0.08")
    assert study["trained"][:4] == [f"learning_rate={rate},seed=5" for rate in rates]
    best = {"learning_rate=0.04,seed=5", "learning_rate=0.04,seed=6"}
    assert set(study["trained"][4:]) == best | {f"{name},max_steps=2" for name in best}
    (row,) = study["results"]["rows"]
    assert (row["values"], row["edge"]) == ({"train.learning_rate": 4e-2}, False)
    assert [run["models"]["merged"]["perplexity"]["value"] for run in row["runs"]] == [5, 6.02]
    assert study["shown"].count("| 5.51 ± 0.72 ") == 2  # at equal tokens and at equal time
    assert [point["value"] for point in row["search"]] == pytest.approx([5.03, 5.02, 5, 5.04])


def test_arms_are_compared_seed_by_seed_and_on_other_texts(search: Search, pruned: Path) -> None:
    def perplexity(rate: float, seed: int) -> float:
        return 30 + 10 * rate * (seed - 4)

    arms: dict[str, Any] = {"a": {}, "b": {"set": {"train.learning_rate": 1e-1}}, "c": {"set": {"train.alpha": 3}}}
    content = {"arms": arms, "seeds": [5, 6], "compare_to": "a", "evaluations": {"far": {}}}
    study = search(perplexity, f"train.input={pruned}", **content)
    a, b, c = study["results"]["rows"]
    assert "minus" not in a
    assert b["minus"]["perplexity"]["by_seed"] == pytest.approx([1 - 0.1, 2 - 0.2])
    assert c["minus"]["perplexity"]["mean"] == 0
    far = [run["evaluations"]["far"]["merged"]["perplexity"]["value"] for run in b["runs"]]
    assert far == [105, 106]
    assert "105.50 ± 0.71" in study["shown"].splitlines()[4]
    lines = study["shown"].partition("Minus a, seed by seed: mean ± standard error")[2].splitlines()
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["b", "+1.35 ± 0.45", "+0.00 ± 0.00"]
    without = search(perplexity, f"train.input={pruned}", "compare_to=null", "only=[a, b]", **content)
    assert "Minus" not in without["shown"]


def test_a_search_ends_at_an_edge_after_as_many_values_as_were_allowed(search: Search) -> None:
    down = search(lambda rate, _: rate, seeds=[])
    assert down["trained"][2:4] == ["learning_rate=0.005", "learning_rate=0.0025"]
    assert down["results"]["rows"][0]["edge"]
    assert "learning_rate=0.0025 (edge)" in down["shown"]


def test_a_rate_that_diverges_loses_and_is_not_tried_again(search: Search) -> None:
    def perplexity(rate: float, _: int) -> float:
        if rate > 1e-2:
            raise DivergedError("NaN")
        return 3.0

    arms = {"a": {"grid": {"train.learning_rate": [5e-3, 1e-2, 2e-2]}}, "b": {"set": {"train.learning_rate": 1}}}
    first = search(perplexity, arms=arms, choose={"by": "perplexity"})
    assert [point["value"] for point in first["results"]["rows"][0]["search"]] == [3.0, 3.0, None]
    assert "diverged" in first["shown"].splitlines()[4]
    again = search(perplexity, arms=arms, choose={"by": "perplexity"})
    assert not again["trained"]
    assert again["shown"] == first["shown"]
    forced = search(perplexity, "--force", arms=arms, choose={"by": "perplexity"})
    assert sorted(set(forced["trained"])) == sorted(set(first["trained"]))


def test_a_row_that_fails_is_named_and_the_others_go_on(search: Search) -> None:
    def perplexity(rate: float, _: int) -> float:
        if rate == 1:
            raise LorsError("out of memory")
        return 3.0

    failing: dict[str, Any] = {"set": {"train.learning_rate": 1.0}}
    study = search(perplexity, arms={"a": failing, "b": {}})
    assert study["results"]["failed"] == {"a": "out of memory"}
    assert "- a: out of memory" in study["shown"]
    assert study["results"]["best"]
    every = search(perplexity, arms={"a": failing}, status=1)
    assert "all 1 runs failed" in every["said"]
    assert not every["results"]["best"]


def test_the_last_task_prints_the_table(search: Search) -> None:
    arms: dict[str, Any] = {"a": {}, "b": {"set": {"train.learning_rate": 2e-2}}}
    first = search(lambda rate, _: rate, "--task", "1", arms=arms)
    assert (first["shown"], first["results"]) == ("", {})
    assert "when all 2 runs are finished" in first["said"]
    assert search(lambda rate, _: rate, "--task", "0", arms=arms)["shown"].count("| a ") == 1
    assert "0 to 1" in search(lambda rate, _: rate, "--task", "2", arms=arms, status=2)["said"]


def test_a_run_that_was_made_with_other_settings_is_not_taken_for_this_one(search: Search) -> None:
    assert search(lambda rate, _: rate, arms={"a": {}})["trained"]
    assert not search(lambda rate, _: rate, arms={"a": {}})["trained"]
    assert search(lambda rate, _: rate, "train.alpha=3", arms={"a": {}})["trained"]


def test_what_would_be_done_is_listed_and_nothing_is_made(lors: Lors, pico: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [*pico, "seeds=[0, 1]", f"output_dir={output}"]
    shown = lors("sweep", STUDY, *arguments, "--dry-run").stdout.splitlines()
    assert [line.partition(" ")[0] for line in shown[-3:]] == ["disk:", "all", "time:"]
    assert shown[:-3] == [
        f"prune eval, shared by all rows of it -> {output}",
        f"task 0: 2 seeds -> {output}/lors",
        f"task 1: search of 2 points, then 2 seeds -> {output}/spp",
    ]
    assert not output.exists()
    assert "train.rank" in lors("sweep", STUDY, *pico, "train.rank=64", "--dry-run", status=2).stderr


def test_data_of_a_further_evaluation_is_checked_before_the_first_run(
    lors: Lors, pico: list[str], tmp_path: Path
) -> None:
    (tmp_path / "pages.jsonl").write_text('{"page": "A text."}\n')
    asked = f"evaluations={{far: {{eval.perplexity.dataset: {tmp_path / 'pages.jsonl'}}}}}"
    refused = lors("sweep", STUDY, *pico, asked, f"output_dir={tmp_path / 'out'}", status=2)
    assert "eval.perplexity.dataset" in refused.stderr
    assert "the fields ['page']" in refused.stderr
    assert not list((tmp_path / "out").glob("*"))

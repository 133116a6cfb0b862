"""The sweep files of scripts/reproduce: all of them are valid, and hold the rows of the papers' tables."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.load import read
from lors_cli.models.source import BUILT_IN as SMOLLM2
from lors_cli.search import sweep_file
from lors_cli.search.runs import Run
from lors_cli.search.study import Study

Lors = Callable[..., Result]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/reproduce"
SWEEPS = sorted(path for path in FOLDER.glob("*.yaml") if sweep_file.is_sweep(read(path)))
LORAM = ("llama-2-13b", "llama-2-70b", "llama-3.1-70b")


def runs(study: Study) -> list[Run]:
    return [study.run(row, values) for row in study.rows for values in row.grid]


def test_all_tables_are_there_at_both_scales() -> None:
    papers = ["loram_curves", "loram_downstream", "lors_initialization", "lors_zero_shot"]
    papers += ["spp_high_sparsity", "spp_zero_shot"]
    expected = {f"{name}{scale}" for name in papers for scale in ("", "_smollm2")}
    assert {path.stem for path in SWEEPS} == expected | {"recovery", "loram_quality"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_has_a_config_and_a_place_of_its_own(path: Path) -> None:
    assert f"lors sweep {path.relative_to(ROOT)}" in path.read_text().split("\nconfig:")[0].split("\noutput_dir:")[0]
    study = Study(path, [])
    made = runs(study)
    places = [run.directory for run in made] + [start.directory for start in study.starts]
    assert len(places) == len(set(places))  # none overwrites what another made
    models = {place / part for place in places for part in ("pruned", "aligned", "adapter", "merged", "eval", "select")}
    assert not any(parent in models for place in places for parent in place.parents)
    assert all({"train", "merge", "eval"} <= set(run.stages) for run in made)
    assert all(row.start.made or study.file.arms[row.arm].starts for row in study.rows)


@pytest.mark.parametrize("name", ["lors_zero_shot", "lors_initialization", "spp_zero_shot", "spp_high_sparsity"])
def test_the_arms_have_the_papers_rates_and_at_small_scale_grids_of_one_size(name: str) -> None:
    paper, small = Study(FOLDER / f"{name}.yaml", []), Study(FOLDER / f"{name}_smollm2.yaml", [])
    for run in runs(paper):
        assert run.train.learning_rate == (4e-3 if run.train.method == "spp" else 2e-5)
        assert run.config.eval
        assert run.config.eval.preset == "lors-paper"
    assert {len(row.grid) for row in small.rows} == {3}
    assert {row.arm for row in paper.rows} == {row.arm for row in small.rows}
    models = sum(start.made is None for start in paper.starts)
    assert len(paper.rows) == len(small.rows) * models


def test_the_rows_of_lorams_tables() -> None:
    study = Study(FOLDER / "loram_downstream.yaml", [])
    made = runs(study)
    originals = ("Llama-2-13b-hf", "Llama-2-7b-hf", "Llama-2-70b-hf", "Llama-3.1-70B", "Llama-3.1-8B")
    pruned = [f"{model}_{way}" for model in LORAM for way in ("rand", "stru", "semi", "unst")]
    # Llama-2-13B is a model of the table and the sibling of another
    inputs = [f"meta-llama/{name}" for name in originals]
    inputs += [f"runs/reproduce/loram_downstream/{name}/aligned" for name in pruned]
    assert [run.train.input for run in made] == inputs
    for run in made[:5]:
        assert run.config.merge
        assert run.config.merge.dense
        assert run.stages == ["train", "merge", "eval"]
    assert all("recover" in run.stages for run in made[5:])
    dense = [start for start in study.starts if start.config.eval and start.config.eval.models == ["dense"]]
    assert [start.config.model for start in dense] == inputs[:5]
    further = study.evaluations(made[0].config, {"merged": "some/model", "pruned": "another"})
    for name, preset in further.items():
        assert preset.eval
        assert (preset.eval.models, preset.eval.preset) == (["some/model"], name)
        assert preset.output_dir == f"{made[0].directory}/{name}"
    assert set(further) == {"loram-math", "humaneval"}
    assert not Study(FOLDER / "loram_downstream_smollm2.yaml", []).file.evaluations


def test_the_points_of_lorams_curves() -> None:
    study = Study(FOLDER / "loram_curves_smollm2.yaml", ["only=[whole, semi]"])
    folder, made = "runs/reproduce/loram_curves_smollm2/semi", runs(study)
    trained = [run.train for run in made]
    assert [train.max_steps for train in trained] == 3 * [5, 10, 20]
    assert {train.schedule for train in trained} == {"constant"}
    inputs = [SMOLLM2, f"{folder}/aligned", f"{folder}/pruned"]
    assert [train.input for train in trained] == [one for one in inputs for _ in range(3)]
    measured = [run.config.eval.models for run in made if run.config.eval]
    assert measured == 3 * [["merged"]] + 6 * [["tuned", "merged"]]


def test_a_table_of_the_pico_model_goes_on_where_it_stopped(
    lors: Callable[..., Result], dense: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["only=[whole, rand]", f"output_dir={output}", f"model={dense}", "device=cpu", "prune.keep_first=0"]
    arguments += ["prune.keep_last=1", "align.max_steps=2", "train.max_steps=2", "eval.tasks=[]"]
    arguments += [f"{key}.sequence_length=32" for key in ("align", "train", "eval.perplexity")]
    arguments += ["eval.perplexity.samples=4"]
    path = FOLDER / "loram_downstream_smollm2.yaml"
    table = lors("sweep", path, *arguments).stdout
    lors("report", output, "--output", f"{output}/report/")
    lines = (output / "report/report.md").read_text().splitlines()
    rows = [line.split("|")[2].strip() for line in lines if line.startswith("| ")]
    pruned = "structured_random 50%"
    assert {"dense", "lora r=8", pruned, f"{pruned}, aligned + lora r=8 on the original"} <= set(rows)
    again = lors("sweep", path, *arguments, "--task", 1)
    assert again.stdout == table
    assert again.stderr.count("nothing to do") == 3  # what the rows share; the row itself is known

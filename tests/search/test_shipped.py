"""The sweep files of scripts/reproduce: all of them are valid, and hold the rows of the papers' tables."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.load import is_sweep, read
from lors_cli.errors import RequestError
from lors_cli.models.source import BUILT_IN as SMOLLM2
from lors_cli.search.located import parse
from lors_cli.search.runs import Run
from lors_cli.search.study import Study

Lors = Callable[..., Result]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/reproduce"
SWEEPS = sorted(path for path in FOLDER.glob("*.yaml") if is_sweep(read(path)))
LORAM = ("llama-2-13b", "llama-2-70b", "llama-3.1-70b")


def runs(study: Study) -> list[Run]:
    return [study.run(row, values) for row in study.rows for values in row.grid]


def test_all_tables_are_there_at_both_scales() -> None:
    papers = ["loram_alignment", "loram_curves", "loram_downstream", "loram_ratio", "lors_initialization"]
    papers += ["lors_zero_shot", "spp_ablations", "spp_high_sparsity", "spp_zero_shot", "sqft_pipelines"]
    expected = {f"{name}{scale}" for name in papers for scale in ("", "_smollm2")} | {"lors_slimpajama"}
    expected |= {"recovery", "loram_quality", "loram_gsm8k", "loram_learning_rate", "loram_masks", "frontier"}
    assert {path.stem for path in SWEEPS} == expected


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_has_a_config_and_a_place_of_its_own(path: Path) -> None:
    assert f"lors sweep {path.relative_to(ROOT)}" in path.read_text().split("\nconfig:")[0].split("\noutput_dir:")[0]
    study = Study(path, [])
    made = runs(study)
    places = [run.directory for run in made] + [start.directory for start in study.starts]
    assert len(places) == len(set(places))  # none overwrites what another made
    models = {
        place / part
        for place in places
        for part in ("pruned", "aligned", "quantized", "adapter", "merged", "eval", "select")
    }
    assert not any(parent in models for place in places for parent in place.parents)
    # two of SQFT's pipelines, and a LoRA on codes, leave the adapter beside the model
    assert all({"train", "eval", *(["merge"] if run.config.merge else [])} <= set(run.stages) for run in made)
    assert path.stem.startswith(("sqft", "frontier")) or all(run.config.merge for run in made)
    assert all(row.start.made or study.file.arms[row.arm].starts for row in study.rows)


@pytest.mark.parametrize("name", ["lors_zero_shot", "lors_initialization"])
def test_the_arms_have_the_papers_rates_and_at_small_scale_grids_of_one_size(name: str) -> None:
    paper, small = Study(FOLDER / f"{name}.yaml", []), Study(FOLDER / f"{name}_smollm2.yaml", [])
    for run in runs(paper):
        assert run.train.learning_rate == (4e-3 if run.train.method == "spp" else 2e-5)
        assert run.config.eval
        assert run.config.eval.preset == "lors-paper"
    assert {len(row.grid) for row in small.rows} == {3}
    assert {row.arm for row in paper.rows} == {row.arm for row in small.rows}


SPP = {  # arXiv 2405.16057, section 4.5, and its code: learning rate, samples a device and a step, epochs
    "llama-7b": (4e-3, 8, 128, 3),
    "llama-13b": (2e-3, 4, 128, 3),
    "llama-30b": (4e-3, 16, 256, 3),
    "llama-65b": (5e-4, 8, 128, 1),
    "llama-2-7b": (4e-3, 8, 128, 3),
    "llama-2-13b": (2e-3, 4, 128, 3),
    "llama-2-70b": (5e-4, 8, 128, 1),
}


def test_spp_has_the_settings_of_its_paper() -> None:
    study = Study(FOLDER / "spp_zero_shot.yaml", [])
    patterns = {f"{pruner}_{pattern}" for pruner in ("sparsegpt", "wanda") for pattern in ("50", "2-4")}
    assert {row.name for row in study.rows} == {f"{model}_{pattern}/spp" for model in SPP for pattern in patterns}
    rest = [run for name in ("spp_high_sparsity", "spp_ablations") for run in runs(Study(FOLDER / f"{name}.yaml", []))]
    for run in [*runs(study), *rest]:
        train, model = run.train, run.config.model.rpartition("/")[2].lower().removesuffix("-hf")
        rate, micro, batch, epochs = SPP[model]
        assert (train.samples_per_forward, train.samples_per_step, train.epochs) == (micro, batch, epochs)
        assert train.learning_rate == (rate if train.method == "spp" else 3e-4)
        assert (train.schedule, train.warmup, train.weight_decay) == ("linear", 0.03, 0.001)
        assert train.alpha / train.rank == 2
        assert (
            train.option("dropout"),
            [one.learn_prompt for one in train.sources.values()],
            train.sequence_length,
        ) == (0.05, [True], 512)
    assert [run.train.rank for run in rest if run.train.method == "lora"] == [8] * 4
    high = Study(FOLDER / "spp_high_sparsity.yaml", [])
    repaired = [start.config.prune.repair for start in high.starts if start.config.prune]
    assert repaired.count("dsnot") == 4  # two models at two patterns, without an arm
    assert not any("dsnot" in row.name for row in high.rows)
    ablations = {run.directory.name: run.train for run in runs(Study(FOLDER / "spp_ablations.yaml", []))}
    assert [ablations[name].rank for name in ("spp", "spp-rank-4", "spp-rank-8")] == [16, 4, 8]
    assert not ablations["spp-no-beta"].option("spp_beta")
    assert [ablations[f"spp-{name}-zero"].option("zero_init") for name in ("alpha", "none")] == ["spp_alpha", "none"]
    assert not study.file.keep_models


def test_lors_on_slimpajama_takes_the_papers_steps() -> None:
    for run in runs(Study(FOLDER / "lors_slimpajama.yaml", [])):
        assert run.train.samples_per_step * run.train.sequence_length == 256_000
        assert (run.train.max_tokens, run.train.rank) == (500_000_000, 16)
        assert run.train.learning_rate == (4e-3 if run.train.method == "spp" else 2e-5)


def test_a_longest_training_in_place_of_epochs_as_the_message_says() -> None:
    path, short = (
        FOLDER / "lors_zero_shot.yaml",
        ["only=[llama-3-8b, llama-3-8b_wanda_2-4, lors]", "train.max_steps=80"],
    )
    with pytest.raises(RequestError, match=r"train\.epochs=null"):
        Study(path, short)
    assert [run.train.max_steps for run in runs(Study(path, [*short, "train.epochs=null"]))] == [80]


def test_each_model_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    path = FOLDER / "lors_zero_shot.yaml"

    def located(**models: str) -> Study:
        return Study(path, [f"models={json.dumps(models)}"])

    places = {"Llama-2-7b-hf": tmp_path / "seven", "meta-llama/Meta-Llama-3-8B": tmp_path / "eight"}
    for place in places.values():
        place.mkdir()
    study = located(**{name: str(place) for name, place in places.items()})
    of = {start.name: start.config.model for start in study.starts}
    assert of["llama-2-7b"] == of["llama-2-7b_wanda_50"] == str(tmp_path / "seven")
    assert of["llama-3-8b_sparsegpt_2-4"] == str(tmp_path / "eight")
    assert of["llama-2-13b_wanda_2-4"] == "meta-llama/Llama-2-13b-hf"
    for wrong, said in (
        ({"Llama-2-7b": str(tmp_path)}, "did you mean"),
        ({"Llama-2-7b-hf": str(tmp_path / "none")}, "does not exist"),
        ({"Llama-2-7b-hf": str(tmp_path), "meta-llama/Llama-2-7b-hf": str(tmp_path)}, "one path for each model"),
    ):
        with pytest.raises(RequestError, match=said):
            located(**wrong)
    for texts in (["Llama-2-7b-hf"], ["a=/b", "a=/c"]):
        with pytest.raises(RequestError, match=r"NAME=PATH|each name once"):
            parse(texts)


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


@pytest.mark.parametrize("name", ["loram_downstream", "loram_curves", "loram_alignment", "loram_ratio", "loram_gsm8k"])
def test_lorams_trainings_are_the_papers(name: str) -> None:
    """Four bits for the smaller models of 70B alone, one rate, and a mask where shapes stay."""
    study = Study(FOLDER / f"{name}.yaml", [])
    for row in study.rows:
        prune, model = row.start.config.prune, row.start.config.model
        structured = prune is not None and prune.sparsity is None
        for run in (study.run(row, values) for values in row.grid):
            assert run.train.learning_rate == 1e-3
            assert run.train.base == ("nf4" if structured and "70" in model else "dense")
            assert run.train.method == ("lora" if structured or prune is None else "sqft")
            assert ("recover" in run.stages) == (prune is not None)
            head = "lm_head" in (run.train.target_modules or [])
            assert head == ("Llama-2" in model)  # LLaMA-3 leaves it out


def test_the_points_of_lorams_figures_and_of_its_table_of_gsm8k() -> None:
    ratios = Study(FOLDER / "loram_ratio.yaml", [])
    assert [start.config.prune.option("ratio") for start in ratios.starts if start.config.prune] == [
        0.65,
        0.75,
        0.85,
        0.95,
    ]
    steps = [
        start.config.align.max_tokens
        for start in Study(FOLDER / "loram_alignment.yaml", []).starts
        if start.config.align
    ]
    assert steps == [200 * 65_536, 400 * 65_536, 800 * 65_536, 1600 * 65_536]
    made = runs(Study(FOLDER / "loram_gsm8k.yaml", []))
    tuned = [(Path(run.train.sources["dataset"].path).name, run.train.max_steps) for run in made]
    assert tuned == [*[("OpenHermes-2.5", 400)] * 3, ("rows.jsonl", 100), ("rows.jsonl", 200)]


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


@pytest.mark.parametrize(
    ("name", "only"), [pytest.param("ratio", "ratio-050", marks=pytest.mark.slow), ("alignment", "aligned-020")]
)
def test_lorams_figures_run_on_the_pico_model(
    lors: Callable[..., Result], dense: Path, tmp_path: Path, name: str, only: str
) -> None:
    """One start of each, from the pruning to the report."""
    output = tmp_path / "out"
    arguments = [f"only=[{only}]", f"output_dir={output}", f"model={dense}", "device=cpu", "eval.perplexity.samples=4"]
    arguments += [f"{key}.sequence_length=32" for key in ("align", "train", "eval.perplexity")]
    arguments += ["train.max_steps=1", "train.eval_dataset=null", "train.eval_steps=null", "choose=null"]
    arguments += ["prune.keep_first=0", "prune.keep_last=1"] + ["align.max_steps=1"] * (name == "ratio")
    table = lors("sweep", FOLDER / f"loram_{name}_smollm2.yaml", *arguments).stdout
    assert "tuned" in table or "merged" in table
    lors("report", output, "--output", f"{output}/report/")
    shown = (output / "report/report.md").read_text()
    assert "lora r=8 on the original" in shown
    assert "lora r=8 on the pruned model" in shown

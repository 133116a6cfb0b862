"""docs/sqft.md: every command of its table is a valid request of the pipeline that the row names."""

import re
import shlex
from pathlib import Path

import pytest

from lors_cli.config.load import load
from lors_cli.search.study import Study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/sqft.md").read_text()
ROWS = re.findall(r"^\| ([\w.-]+), ([\w-]+) \| `lors run (.+)` \|$", PAGE, re.MULTILINE)
PIPELINES = {  # method, base, quantisation-aware, quantised, merged, epochs
    "Shears": ("lora", "dense", False, False, False, 3),
    "SQFT": ("lora", "int4", False, True, False, 3),
    "SparsePEFT": ("sqft", "dense", False, False, True, 3),
    "QA-SparsePEFT": ("sqft", "int4", True, True, True, 4),
}


def test_every_model_has_every_pipeline() -> None:
    models = {model for model, _, _ in ROWS}
    assert len(models) == len(list((ROOT / "configs/sqft").glob("*.yaml"))) == 3
    assert {(model, pipeline) for model, pipeline, _ in ROWS} == {(m, p) for m in models for p in PIPELINES}


@pytest.mark.parametrize(("model", "pipeline", "command"), ROWS)
def test_a_command_is_the_pipeline(model: str, pipeline: str, command: str) -> None:
    path, *overrides = shlex.split(command)
    config = load(ROOT / path, overrides)
    train = config.train
    assert train is not None
    assert model.lower() in path
    told = train.method, train.base, train.option("quantization_aware") or False
    assert (*told, config.quantize is not None, config.merge is not None, train.epochs) == PIPELINES[pipeline]
    assert (train.rank, train.alpha, train.elastic_ranks) == (32, 64, [32, 28, 24, 20, 16])
    assert (train.learning_rate, train.samples_per_step, train.option("dropout")) == (
        3e-4,
        16,
        0.1 if train.method == "lora" else None,
    )


@pytest.mark.parametrize("name", ["sqft_pipelines", "sqft_pipelines_smollm2"])
def test_the_sweep_has_the_pipelines(name: str) -> None:
    study = Study(ROOT / f"scripts/reproduce/{name}.yaml", [])
    arms = {"shears": "Shears", "sqft": "SQFT", "sparsepeft": "SparsePEFT", "qa-sparsepeft": "QA-SparsePEFT"}
    assert {row.arm for row in study.rows} == arms.keys()
    assert {start.made for start in study.starts} == {"quantized"}
    for row in study.rows:
        run = study.run(row, {})
        train, (*told, quantized, merged, epochs) = run.train, PIPELINES[arms[row.arm]]
        assert [train.method, train.base, train.option("quantization_aware") or False] == told
        assert train.input == str(row.start.directory / ("quantized" if quantized else "pruned"))
        assert (run.config.merge is not None, run.config.eval is not None) == (merged, True)
        assert run.config.eval is None or run.config.eval.models == ["merged" if merged else "tuned"]
        assert train.epochs == epochs or name.endswith("smollm2")

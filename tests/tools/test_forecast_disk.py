"""What a dry run says of the disk: within a tenth of what the stages then write, also where weights are quantised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli import pipeline
from lors_cli.artifacts import model_files
from lors_cli.config.load import load
from tests import pico

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
OUTPUTS = {"prune": "pruned", "quantize": "quantized", "merge": "merged"}
LARGE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
}  # in smaller weights the names of tensors are a large part
ROUNDED = {"method": "rtn", "bits": 4, "group_size": 32}
CODES: dict[str, Any] = {"prune__method": "magnitude", "train__base": "int4", "train__max_steps": 1}


@pytest.fixture(scope="module")
def large(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.make(tokenizer, tmp_path_factory.mktemp("large") / "model", **LARGE)


def forecasts(path: Path, stages: list[str]) -> dict[str, float]:
    return {job.stage: job.effort.kept for job in pipeline.run(load(path, []), stages, dry_run=True)}


def written(run: Path, stage: str) -> int:
    return sum(path.stat().st_size for path in model_files.weight_files(run / OUTPUTS[stage]))


def close(said: float, run: Path, stage: str) -> bool:
    return said == pytest.approx(written(run, stage), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": ROUNDED, **CODES},
        {"quantize": {**ROUNDED, "bits": 3, "symmetric": False, "targets": ["down_proj", "q_proj"]}, **CODES},
        {"quantize": ROUNDED, **CODES, "merge__requantize": "none"},
        {"prune__quantize": {"bits": 4, "group_size": 32}, "train__base": "int4", "prune__method": "sparsegpt"},
    ],
    ids=["int4", "some linears in int3", "merged as numbers", "pruned and rounded in one solve"],
)
def test_what_is_said_of_quantised_models_is_what_is_written(
    lors: Lors, write_config: WriteConfig, large: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = write_config(model=str(large), eval=..., **changes)
    stages = ["prune", *(["quantize"] if "quantize" in changes else []), "train", "merge"]
    said = forecasts(path, stages)
    lors("run", path)
    for stage in OUTPUTS.keys() & said.keys():
        assert close(said[stage], tmp_path / "run", stage), stage
    assert close(forecasts(path, ["merge"])["merge"], tmp_path / "run", "merge"), "into a model that exists"


def test_a_merge_by_gptq_counts_the_merged_model_once(
    lors: Lors, write_config: WriteConfig, large: Path, tmp_path: Path
) -> None:
    text = {"dataset": "python-topics", "samples": 2, "sequence_length": 32}
    merge = {"requantize": "gptq", "calibration": text}
    path = write_config(model=str(large), quantize=ROUNDED, eval=..., merge=merge, **CODES)
    lors("run", path)
    assert close(forecasts(path, ["merge"])["merge"], tmp_path / "run", "merge")

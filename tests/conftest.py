"""Pico models, whole pipelines: a two-block Llama with grouped-query heads and a real tokenizer, made on disk."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1"
)

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from lors_cli import offline
from lors_cli.cli import app
from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern
from tests import pico
from tests.evaluation.tasks import write_tasks

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models are tiny, and one thread makes sums repeatable


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # what a test draws must not depend on which tests ran before it in its process


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens, trained on the built-in text."""
    return pico.tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Write a random pico Llama to a directory."""

    return partial(pico.make, tokenizer)


@pytest.fixture(scope="session")
def dense(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model of most tests. Not to be written to."""
    return make_model(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def pruned(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model with 2:4 zeros in all linears of its blocks. Not to be written to."""
    path = make_model(tmp_path_factory.mktemp("pruned") / "model", initializer_range=0.1)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor.masked_fill_(~keep_largest(tensor.abs(), Pattern.parse("2:4"), per_row=True), 0)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def write_config(dense: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a config of the whole job on the pico model; dotted keyword arguments change it."""

    def write(**changes: Any) -> Path:
        config = pico.config(str(dense), str(tmp_path / "run"))
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = config
            for parent in parents:
                target = target.setdefault(parent, {})
            if value is ...:
                target.pop(last, None)
            else:
                target[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return path

    return write


@pytest.fixture
def lors() -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*args: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == status, f"exit {result.exit_code}, expected {status}:\n{result.output}"
        return result

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def task_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small tasks for lm-eval, in a process without a network, which stays as it was for later tests."""
    for name in offline.VARIABLES:
        monkeypatch.setenv(name, "1")
    return write_tasks(tmp_path / "tasks")

"""Every config that is shipped is valid and opens with the command that runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import Result

from lors_cli import adapters
from lors_cli.config.load import load
from tests.models.test_structure import LLAMA, SHAPES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPERS = [path for path in CONFIGS if path.parent.name == "papers"]
LORAM = [path for path in CONFIGS if path.parent.name == "loram" and "llama" in path.stem]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_is_valid_and_names_its_command(path: Path) -> None:
    config = load(path, [])
    assert config.prune is not None
    assert config.train is not None
    assert config.merge is not None
    assert config.eval is not None
    head = path.read_text().split("\nmodel:")[0]
    assert f"lors run {path.relative_to(ROOT)}" in head
    schema = head.rpartition("# yaml-language-server: $schema=")[2]
    assert (path.parent / schema).resolve() == ROOT / "configs/schema.json"


def test_the_papers_settings_are_all_there() -> None:
    assert {path.stem for path in PAPERS} == {
        f"{model}_{pruner}_{pattern}"
        for model in ("llama-2-7b", "llama-3-8b")
        for pruner in ("wanda", "sparsegpt")
        for pattern in ("2-4", "50")
    }


@pytest.mark.parametrize("method", ["lors", "spp", "sqft"])
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_papers_configs_hold_for_each_method(path: Path, method: str) -> None:
    config = load(path, [f"train.method={method}", f"output_dir=runs/{method}"])
    assert config.train is not None
    assert config.eval is not None
    assert config.train.method in adapters.METHODS
    assert (config.train.rank, config.train.samples_per_step) == (16, 32)
    assert config.eval.preset == "lors-paper"


def test_lorams_settings_are_all_there() -> None:
    assert {path.stem for path in LORAM} == {
        f"{model}_{way}"
        for model in ("llama-2-13b", "llama-2-70b", "llama-3.1-70b")
        for way in ("rand", "stru", "semi", "unst")
    }


@pytest.mark.parametrize("base", ["dense", "nf4"])
@pytest.mark.parametrize("path", LORAM, ids=lambda path: path.name)
def test_lorams_configs_have_the_papers_settings(path: Path, base: str) -> None:
    config = load(path, [f"train.base={base}"])
    prune, align, train = config.prune, config.align, config.train
    assert prune and align and train and config.recover and config.eval  # noqa: PT018 - for mypy
    model, way = path.stem.split("_")
    structured = way in ("rand", "stru")
    ratio = {"llama-2-13b": 0.65, "llama-2-70b": 0.75, "llama-3.1-70b": 0.85}[model]
    zeros = {"semi": "4:8", "unst": "0.55"}.get(way)
    pruned = prune.model_dump(mode="json")
    assert (pruned["ratio"], pruned["sparsity"]) == (ratio if structured else None, zeros)
    assert (pruned["keep_first"], pruned["keep_last"]) == (4, 2)
    assert structured or adapters.METHODS[align.method].keeps_zeros
    steps, rest = divmod(align.max_tokens or 0, align.samples_per_step * align.sequence_length)
    assert (steps, rest) == (200 if model == "llama-2-13b" else 1600, 0)
    assert (train.method, train.rank, train.max_steps) == ("lora", 8, 400)
    assert (train.samples_per_step, train.sequence_length) == (128, 512)
    assert train.target_modules == LINEARS + ["lm_head"] * model.startswith("llama-2")
    assert config.eval.models == ["dense", "pruned", "tuned", "merged"]
    assert config.eval.preset == "loram-csr"


@pytest.mark.parametrize(
    ("model", "ratio", "before", "after"),
    [  # arXiv 2502.13533, tables 4 and 5
        ("llama-2-13b", 0.65, 13015864320, 6005662720),
        ("llama-2-70b", 0.65, 68976648192, 28099436544),
        ("llama-2-70b", 0.75, 68976648192, 21488738304),
        ("llama-2-70b", 0.85, 68976648192, 16272924672),
        ("llama-2-70b", 0.95, 68976648192, 9662226432),
        ("llama-3.1-70b", 0.85, 70553706496, 17849982976),
    ],
)
def test_structured_pruning_leaves_as_many_parameters_as_in_the_paper(
    lors: Callable[..., Result], tmp_path: Path, model: str, ratio: float, before: int, after: int
) -> None:
    vocabulary = {"vocab_size": 128256} if "3.1" in model else {}
    LlamaConfig(**{**LLAMA, **SHAPES[model.rsplit("-")[-1]], **vocabulary}).save_pretrained(tmp_path)
    config = ROOT / f"configs/loram/{model}_rand.yaml"
    shown = lors("prune", config, f"model={tmp_path}", f"prune.ratio={ratio}", "--dry-run").stdout
    assert f"{before / 1e9:.2f}B -> {after / 1e9:.2f}B parameters ({before / after:.2f}x, exactly {after:,})" in shown

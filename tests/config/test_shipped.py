"""Every config that is shipped is valid and opens with the command that runs it."""

from pathlib import Path

import pytest

from lors_cli import adapters
from lors_cli.config.load import load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPERS = [path for path in CONFIGS if path.parent.name == "papers"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_is_valid_and_names_its_command(path: Path) -> None:
    config = load(path, [])
    assert config.prune is not None
    assert config.train is not None
    assert config.merge is not None
    assert config.eval is not None
    assert f"lors run {path.relative_to(ROOT)}" in path.read_text().split("\nmodel:")[0]


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

from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.config.load import load
from lors_cli.errors import RequestError

YAML = """
model: some/model
output_dir: runs/x
prune:
  method: wanda
  sparsity: 2:4
  calibration: {dataset: python-topics}
train: {method: lors, dataset: python-topics, learning_rate: 1e-4, max_steps: 010}
"""


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def test_scalars_follow_yaml_1_2(file: Callable[[str], Path]) -> None:
    config = load(file(YAML), [])
    assert config.prune is not None
    assert config.train is not None
    assert str(config.prune.sparsity) == "2:4"
    assert config.train.learning_rate == 1e-4
    assert config.train.max_steps == 10  # 010 is octal in YAML 1.1 only


def test_overrides_have_yaml_values(file: Callable[[str], Path]) -> None:
    overrides = ["prune.sparsity=1:4", "train.learning_rate=3e-5", "train.dataset.limit=7", "eval.tasks=[a, b]"]
    config = load(file(YAML), overrides)
    assert config.prune is not None
    assert config.train is not None
    assert config.eval is not None
    assert str(config.prune.sparsity) == "1:4"
    assert config.train.learning_rate == 3e-5
    assert (config.train.dataset.path, config.train.dataset.limit) == ("python-topics", 7)
    assert config.eval.tasks == ["a", "b"]


def test_every_mistake_is_reported_at_once(file: Callable[[str], Path]) -> None:
    path = file(YAML.replace("method: wanda", "method: wand").replace("max_steps", "max_stps") + "sed: 3\n")
    with pytest.raises(RequestError) as caught:
        load(path, ["train.rank=-1"])
    found = {problem.key: problem for problem in caught.value.problems}
    assert set(found) == {"prune.method", "train.max_stps", "sed", "train.rank"}
    assert "wanda" in found["prune.method"].expected
    assert found["train.max_stps"].remedy == "did you mean 'max_steps'?"
    assert found["sed"].remedy == "did you mean 'seed'?"
    assert found["train.rank"].file == "command line"
    assert found["sed"].file == str(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("2:4", "5:4"), "0 < N < M"),
        (("2:4", "1.5"), "between 0 and 1"),
        (("1e-4", "-1"), "greater than 0"),
        (("1e-4", ".nan"), "finite"),
        (("method: lors", "method: lors, dropout: 0.1"), "dropout: 0"),
        (("method: lors", "method: spp, init: gradient"), "init: random"),
        (("method: lors", "method: lors, adapter_checkpointing: true"), "saves nothing"),
        (("max_steps: 010", "max_steps: 1, epochs: 2"), "only one of epochs"),
        (("max_steps: 010", "batch_size: 6, micro_batch_size: 4"), "divides the batch"),
        (("calibration: {dataset: python-topics}", ""), "because wanda looks at activations"),
        (("method: wanda", "method: wanda\n  damping: 0.1"), "no damping"),
        (("model: some/model", ""), "the key is required"),
        (("max_steps: 010", "target_modules: q_proj"), "valid list"),
    ],
)
def test_refuses(file: Callable[[str], Path], change: tuple[str, str], expected: str) -> None:
    text = YAML.replace(*change)
    assert text != YAML
    with pytest.raises(RequestError, match=expected):
        load(file(text), [])


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- 1", "", "x: !!python/object:os.system {}", "\tb: 1"])
def test_refuses_what_is_no_plain_mapping(file: Callable[[str], Path], text: str) -> None:
    with pytest.raises(RequestError, match="expected"):
        load(file(text), [])


@pytest.mark.parametrize("override", ["rank", "=3", "train.rank.x=3", "train.rank=[1"])
def test_refuses_faulty_overrides(file: Callable[[str], Path], override: str) -> None:
    with pytest.raises(RequestError, match="command line"):
        load(file(YAML), ["train.rank=4", override])

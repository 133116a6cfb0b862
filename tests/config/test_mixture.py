from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.config.fields import named_datasets
from lors_cli.config.load import load
from lors_cli.config.schema import Config
from lors_cli.config.train import Train
from lors_cli.errors import Problem, RequestError

Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def of(dataset: str, more: str = "max_steps: 8", *overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        text = f"model: m\noutput_dir: o\ntrain: {{method: lors, dataset: {dataset}, {more}}}\n"
        path.write_text(text)
        return load(path, overrides)

    return of


def train(config: Config) -> Train:
    assert config.train
    return config.train


def problems(read: Read, *arguments: str) -> dict[str, Problem]:
    with pytest.raises(RequestError) as raised:
        read(*arguments)
    return {problem.key: problem for problem in raised.value.problems}


def test_a_list_of_data_sets_is_a_mixture(read: Read) -> None:
    config = read("[{path: a.jsonl, weight: 3, streaming: true}, {path: b.jsonl, weight: 0.5, limit: 7}]")
    section = train(config)
    assert section.weights == [3.0, 0.5]
    assert {key: source.path for key, source in section.sources.items()} == {
        "dataset[0]": "a.jsonl",
        "dataset[1]": "b.jsonl",
    }
    assert [key for key, _ in named_datasets(config)] == ["train.dataset[0]", "train.dataset[1]"]
    changed = train(
        read(
            "[{path: a, weight: 3}, {path: b, weight: 1}]",
            "max_steps: 8",
            "train.dataset.1.weight=9",
            "train.dataset[0].limit=5",
        )
    )
    assert changed.weights == [3.0, 9.0]
    assert changed.sources["dataset[0]"].limit == 5


def test_a_list_of_one_is_that_data_set(read: Read) -> None:
    alone = train(read("[{path: a.jsonl, weight: 3, limit: 7}]", "epochs: 2"))
    assert alone == train(read("{path: a.jsonl, limit: 7}", "epochs: 2"))
    assert alone.weights == []


@pytest.mark.parametrize("weight", ["0", "-1", ".nan", ".inf", "true", "1e300", "[1]", "much"])
def test_a_weight_is_a_number_above_zero(read: Read, weight: str) -> None:
    found = problems(read, f"[{{path: a, weight: 1}}, {{path: b, weight: {weight}}}]")
    assert found.keys() == {"train.dataset[1].weight"}
    assert "above 0" in found["train.dataset[1].weight"].expected or weight == "true"


def test_every_source_says_its_weight(read: Read) -> None:
    found = problems(read, "[{path: a}, b.jsonl, 3]")
    assert found["train.dataset[0].weight"].remedy.startswith("add weight:")
    assert "write {path: b.jsonl, weight: 1}" in found["train.dataset[1]"].remedy
    assert "{path: ...}" in found["train.dataset[2]"].expected
    assert "train.dataset.weight" in problems(read, "{path: a, weight: 2}")
    assert "train.dataset[1].fromat" in problems(read, "[{path: a, weight: 1}, {path: b, weight: 1, fromat: text}]")
    assert "at least 1" in problems(read, "[]")["train.dataset"].expected


@pytest.mark.parametrize("again", ["{path: ./a, weight: 2}", "{path: a, weight: 1}"])
def test_a_source_that_stands_twice(read: Read, again: str) -> None:
    found = problems(read, f"[{{path: a, weight: 1}}, {again}]")
    assert "give dataset[0] the sum of both weights" in found["train.dataset[1]"].remedy
    read("[{path: a, weight: 1}, {path: a, weight: 1, split: test}]")  # other rows


@pytest.mark.parametrize("more", ["epochs: 2", "batch_size: 4"])
def test_a_mixture_has_no_epochs(read: Read, more: str) -> None:
    mixture = "[{path: a, weight: 1}, {path: b, weight: 1}]"
    (problem,) = problems(read, mixture, more).values()
    assert "a mixture has no epochs" in problem.expected
    assert problem.remedy == (
        "write epochs: null, and max_steps: N, or max_tokens: N"
        if "epochs" in more
        else "add max_steps: N, or max_tokens: N"
    )
    read(mixture, more.replace("2", "null"), "train.max_steps=5")
    read(mixture, more, "train.epochs=null", "train.max_tokens=500")


def test_only_a_training_takes_a_mixture(read: Read) -> None:
    mixture = "[{path: a, weight: 1}, {path: b, weight: 1}]"
    found = problems(read, "c", f"eval_dataset: {mixture}")
    assert "one data set" in found["train.eval_dataset"].expected

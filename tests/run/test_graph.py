"""Where each stage reads from, as the config says it, in one run and over several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lors_cli.config.load import load
from lors_cli.errors import RequestError
from lors_cli.run.graph import Graph, Input
from lors_cli.run.layout import EVALUATED, STAGES

WriteConfig = Callable[..., Path]
ALIGN = {"dataset": "python-topics", "max_steps": 1}
RANDOM = {"method": "structured_random", "ratio": 0.5, "keep_first": 1, "keep_last": 0}


@pytest.fixture
def graph(write_config: WriteConfig) -> Callable[..., Graph]:
    """The graph of a run of `stages` with the config that the keyword arguments change."""

    def make(*stages: str, **changes: Any) -> Graph:
        return Graph(load(write_config(**changes), []), stages)

    return make


def published(output: Path, *stages: str) -> None:
    for stage in stages:
        directory = STAGES[stage].output(output)
        directory.mkdir(parents=True)
        (directory / "lors.json").write_text("{}")


def test_what_a_run_makes_is_like_the_model_that_it_is_made_from(
    graph: Callable[..., Graph], dense: Path, tmp_path: Path
) -> None:
    run = graph(*STAGES, align=ALIGN, recover={})
    pruned, aligned, adapter = (tmp_path / "run" / folder for folder in ("pruned", "aligned", "adapter"))
    assert run.input("prune", "model") == Input(dense, dense)
    assert run.input("align", "pruned") == Input(pruned, dense, "prune")
    assert run.input("train", "pruned") == Input(aligned, dense, "align")
    assert run.input("recover", "adapter") == Input(adapter, adapter, "train")
    assert run.input("merge", "pruned") == Input(dense, dense)  # a recovered adapter belongs to the original
    assert run.input("merge", "adapter").maker == "recover"
    makers = {name: run.input("eval", name).maker for name in EVALUATED}
    makers_of = {"pruned": "prune", "aligned": "align", "quantized": "quantize", "tuned": "train", "merged": "merge"}
    assert makers == makers_of
    assert run.input("eval", str(dense)) == Input(dense, dense)


def test_what_earlier_runs_made_is_taken_as_it_is(graph: Callable[..., Graph], tmp_path: Path) -> None:
    published(tmp_path / "run", "prune", "align")
    pruned, aligned = tmp_path / "run/pruned", tmp_path / "run/aligned"
    assert graph("train").input("train", "pruned") == Input(pruned, pruned)
    assert graph("train", align=ALIGN).input("train", "pruned") == Input(aligned, aligned)
    assert graph("eval", align=ALIGN).input("eval", "pruned") == Input(pruned, pruned)


def test_a_stage_after_the_reader_does_not_count(graph: Callable[..., Graph]) -> None:
    with pytest.raises(RequestError, match="run `lors prune` first"):
        graph("train", "prune").input("train", "pruned")


@pytest.mark.parametrize(
    ("stage", "name", "key"),
    [
        ("align", "pruned", "align.input"),
        ("train", "pruned", "train.input"),
        ("recover", "adapter", "recover.adapter"),
        ("merge", "adapter", "merge.adapter"),
        ("eval", "merged", "eval.models"),
        ("eval", "/nowhere", "eval.models"),
    ],
)
def test_what_is_missing_is_named_by_its_key(graph: Callable[..., Graph], stage: str, name: str, key: str) -> None:
    run = graph(stage, align=ALIGN, recover={})
    for _ in range(2):  # the answer to the second question is the same
        with pytest.raises(RequestError) as caught:
            run.input(stage, name)
        assert caught.value.problems[0].key == key


def test_an_own_input_comes_first_and_is_passed_on(
    graph: Callable[..., Graph], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    own, other = (make_model(tmp_path / name) for name in ("own", "other"))
    run = graph("train", "merge", "eval", train__input=str(own))
    assert {run.input(stage, "pruned").path for stage in ("train", "merge", "eval")} == {own}
    run = graph("train", "merge", train__input=str(own), merge={"input": str(other)})
    assert run.input("merge", "pruned").path == other


def test_a_path_to_what_the_run_makes_is_made_by_it(graph: Callable[..., Graph], dense: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "run/pruned"
    run = graph("prune", "train", train__input=str(pruned))
    assert run.input("train", "pruned") == Input(pruned, dense, "prune")


def test_the_skeleton_of_a_model_that_will_be_smaller_is_smaller(graph: Callable[..., Graph]) -> None:
    run = graph("prune", "train", prune=RANDOM)
    original, pruned = run.input("prune", "model"), run.input("train", "pruned")
    assert (original.smaller, pruned.smaller) == (False, True)
    sizes = [sum(p.numel() for p in one.skeleton(run.config).parameters()) for one in (original, pruned)]
    assert sizes[1] < sizes[0]

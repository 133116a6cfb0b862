import json
from pathlib import Path
from typing import Any

import pytest

from lors_cli.run import manifest
from lors_cli.run.lineage import Lineage, Original, Step, hub_id

HUB_ID = "owner/name"
CACHED = "/cache/snapshots/0123"


def store(run: Path, name: str, stage: str, inputs: dict[str, str], digest: str = "") -> Step:
    """A directory of a run with a manifest; `inputs` are the names of others, which are their digests too."""
    content = {
        "stage": stage,
        "request": {"settings": {}, "inputs": inputs},
        "digest": digest or name,
        "config": {"output_dir": str(run)},
        "input_paths": {key: str(run / other) for key, other in inputs.items()},
    }
    (run / name).mkdir(parents=True)
    (run / name / manifest.NAME).write_text(json.dumps(content))
    made = manifest.read(run / name)
    assert made is not None
    return Step(run / name, made)


@pytest.fixture
def loram(tmp_path: Path) -> Step:
    """The merge of a recovered adapter of a model that was pruned and aligned."""
    run = tmp_path / "run"
    store(run, "pruned", "prune", {"model": "original"})
    store(run, "aligned", "align", {"pruned": "pruned", "teacher": "original"})
    store(run, "adapter", "train", {"pruned": "aligned"})
    store(run, "recovered", "recover", {"model": "original", "pruned": "aligned", "adapter": "adapter"})
    return store(run, "merged", "merge", {"pruned": "original", "adapter": "recovered"})


def test_all_steps_are_told_once_in_order(loram: Step) -> None:
    steps = Lineage().steps(loram.made)
    assert [step.stage for step in steps] == ["prune", "align", "train", "recover", "merge"]
    assert Original.of(steps, Lineage()).name == "original"


def test_the_way_back_is_that_of_the_adapter(loram: Step) -> None:
    assert [step.directory.name for step in Lineage().back(loram)] == [
        *("merged", "recovered", "adapter", "aligned", "pruned")
    ]


def test_what_was_made_again_since_ends_the_walk(loram: Step) -> None:
    adapter = loram.directory.parent / "adapter" / manifest.NAME
    adapter.write_text(adapter.read_text().replace('"digest": "adapter"', '"digest": "another"'))
    assert [step.made.stage for step in Lineage().back(loram)] == ["merge", "recover"]
    assert [step.stage for step in Lineage().steps(loram.made)] == ["prune", "align", "recover", "merge"]


def test_a_run_that_was_moved_is_followed_where_it_is(loram: Step) -> None:
    moved = loram.directory.parents[1] / "moved"
    loram.directory.parent.rename(moved)
    assert len(list(Lineage().back(loram))) == 1
    assert len(list(Lineage(run=moved).back(Step(moved / "merged", loram.made)))) == 5


@pytest.mark.parametrize(
    ("stage", "name", "config", "path", "expected"),
    [
        ("prune", "model", {"model": HUB_ID}, CACHED, HUB_ID),
        ("prune", "model", {"model": "x", "prune": {"input": HUB_ID}}, CACHED, HUB_ID),
        ("prune", "model", {"model": "runs/dense"}, "runs/dense", None),
        ("prune", "model", {"model": "runs/dense"}, "/work/runs/dense", None),
        ("prune", "model", {"model": "../dense"}, "/work/here/../dense", None),
        ("prune", "model", {"model": "."}, "/work/here", None),
        ("prune", "model", {"model": "~/dense"}, str(Path.home() / "dense"), None),
        ("prune", "model", {"model": "smollm2-135m"}, "/cache/lors/smollm2-135m", None),
        ("prune", "model", {"model": "a/b.gguf"}, "/cache/lors/b-0123", None),
        ("train", "pruned", {"model": "x", "train": {"input": HUB_ID}}, CACHED, HUB_ID),
        ("train", "pruned", {"model": HUB_ID, "train": {"input": None}}, "run/pruned", None),
        ("merge", "pruned", {"model": "x", "train": {"input": HUB_ID}, "merge": {}}, CACHED, HUB_ID),
        ("merge", "pruned", {"model": HUB_ID, "recover": {}, "merge": {}}, CACHED, HUB_ID),
        ("recover", "model", {"model": HUB_ID, "recover": {"input": "run/pruned"}}, CACHED, HUB_ID),
    ],
)
def test_older_manifests_have_the_hub_id_in_their_config(
    stage: str, name: str, config: dict[str, Any], path: str, expected: str | None
) -> None:
    content = {"stage": stage, "request": {}, "digest": "d", "config": config, "input_paths": {name: path}}
    assert hub_id(manifest.parse(content), name) == expected
    recorded = manifest.parse({**content, "hub_ids": {name: "someone/else"}})
    assert hub_id(recorded, name) == "someone/else"

"""From the hub's cache to a node without a network, with a server of this process as the hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lors_cli import offline
from tests import hub

WriteConfig = Callable[..., Path]
ARC = {"question": "Which is red?", "choices": {"text": ["a fire", "the sea"], "label": ["A", "B"]}, "answerKey": "A"}
CARD = "---\nconfigs:\n- config_name: {}\n  data_files:\n{}---\n"


def data_set(folder: Path, name: str, rows: list[dict[str, Any]], *splits: str) -> None:
    """A data set of the hub whose card names its configuration and splits."""
    (folder / "data").mkdir(parents=True)
    for split in splits:
        (folder / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = "".join(f"  - split: {split}\n    path: data/{split}.jsonl\n" for split in splits)
    (folder / "README.md").write_text(CARD.format(name, listed))


@pytest.fixture
def folder(dense: Path, tmp_path: Path) -> Path:
    """The hub's models and data sets."""
    folder = tmp_path / "hub"
    shutil.copytree(dense, folder / "models/someone/pico")
    texts = [{"text": f"{number} and {number * number % 7}, " * 20} for number in range(60)]
    data_set(folder / "datasets/someone/texts", "plain", texts, "train", "test")
    data_set(folder / "datasets/allenai/ai2_arc", "ARC-Easy", [ARC] * 5, "train", "validation", "test")
    shards = folder / "datasets/someone/shards/en"
    shards.mkdir(parents=True)
    for shard in range(3):
        lines = [json.dumps(row) + "\n" for row in texts[20 * shard : 20 * shard + 20]]
        (shards / f"train-{shard}.jsonl").write_text("".join(lines))
    return folder


def test_what_was_prefetched_is_enough_without_a_network(
    write_config: WriteConfig, folder: Path, tmp_path: Path
) -> None:
    plain = {"path": "someone/texts", "name": "plain"}
    config = write_config(
        model="someone/pico",
        prune__calibration__dataset={"path": "someone/shards", "data_files": "en/train-1.jsonl", "limit": 15},
        train__dataset={**plain, "streaming": True},
        train__eval_dataset={"path": "someone/shards", "data_files": "en/train-[02].jsonl"},
        eval={
            "perplexity": {"dataset": {**plain, "split": "test", "limit": 50}, "sequence_length": 32, "samples": 4},
            "tasks": ["arc_easy"],
            "limit": 3,
            "offline": True,
        },
    )
    home = tmp_path / "home"

    def run(*arguments: str, address: str, status: int = 0) -> str:
        own = {name: value for name, value in os.environ.items() if name not in offline.VARIABLES}
        own |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
        command = [sys.executable, "-m", "lors_cli", *arguments]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    with hub.serve(folder) as (address, requests):
        fetched = run("eval", str(config), "--prefetch", address=address)
        assert any("train-0.jsonl" in request for request in requests)
    for line in ("dense: ", "prune.calibration.dataset: someone/shards", "task arc_easy: 1 with data"):
        assert line in fetched

    run("run", str(config), "eval.offline=true", address=address)
    recorded = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    assert recorded["hub_ids"] == {"model": "someone/pico"}
    for made in ("pruned", "merged"):
        assert "base_model: someone/pico" in (tmp_path / "run" / made / "README.md").read_text()
    results = json.loads((tmp_path / "run/eval/results.json").read_text())
    assert [model["tasks"]["arc_easy"]["n"] for model in results["models"].values()] == [3, 3, 3]

    shutil.rmtree(home / "datasets/allenai___ai2_arc")
    shutil.rmtree(home / "hub/datasets--allenai--ai2_arc")
    said = run("eval", str(config), "--force", address=address, status=2)
    assert "the data set of arc_easy, allenai/ai2_arc" in said
    assert "--prefetch" in said
    assert "perplexity 3" not in said  # nothing was measured before that was said
    assert results == json.loads((tmp_path / "run/eval/results.json").read_text())

"""The rows of local data are those that their files hold now, whatever the library datasets remembers of them."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from lors_cli.evaluation import benchmarks

KINDS: dict[str, dict[str, Any]] = {
    "jsonl": {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": "data/rows.jsonl"}}},
    "pattern": {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": "data/*.jsonl"}}},
    "gz": {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": "data/rows.jsonl.gz"}}},
    "parquet": {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"validation": "data/rows.parquet"}}},
    "data_dir": {"dataset_path": "json", "dataset_kwargs": {"data_dir": "data"}},
    "folder": {"dataset_path": "data"},
}


def write(folder: Path, kind: str, letter: str) -> None:
    """Write rows that differ by a letter, at the time at which they were written first."""
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"question": f"{letter}{n}"}) + "\n" for n in range(3))
    names = {"gz": "rows.jsonl.gz", "parquet": "rows.parquet", "jsonl": "rows.jsonl", "pattern": "rows.jsonl"}
    path = folder / names.get(kind, "validation.jsonl")
    if kind == "parquet":
        datasets.Dataset.from_list([json.loads(line) for line in lines.splitlines()]).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(lines.encode(), mtime=0) if kind == "gz" else lines.encode())
    os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_files_whose_digests_are_recorded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = {"validation_split": "validation", "doc_to_text": "{{question}}", "doc_to_target": "x", "task": "own"}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/own.yaml").write_text(json.dumps({**content, **KINDS[kind]}))
    of = benchmarks.load
    options: dict[str, Any] = dict.fromkeys(("preset", "shots", "limit"))
    options |= {"allow_code_execution": False, "trust_task_code": kind == "folder"}
    found = []
    for letter in "abba":
        write(tmp_path / "tasks/data", kind, letter)
        loaded = of(["own"], str(tmp_path / "tasks"), None, **options)
        assert [row["question"] for row in loaded.asked[0].objects[0].validation_docs()] == [
            f"{letter}{n}" for n in range(3)
        ]
        found.append(loaded.digests)
    assert found[0] == found[3] != found[1] == found[2]
    assert len(found[0]) == 2  # the task's file, and that of the rows


def test_files_of_the_hub_and_missing_ones_are_left_to_the_library(tmp_path: Path) -> None:
    from lors_cli.evaluation import task_data

    original = datasets.load_dataset
    with task_data.by_content() as read:
        with pytest.raises(FileNotFoundError):
            datasets.load_dataset("json", data_files=str(tmp_path / "none.jsonl"))
        with pytest.raises((ConnectionError, datasets.exceptions.DatasetNotFoundError)):
            datasets.load_dataset("nobody/no-such-data-set")
    assert read == []
    assert datasets.load_dataset is original

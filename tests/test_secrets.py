"""A secret in the environment, on the command line and beside the model and the data is in nothing that a run makes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

CANARY = "hf_canary0123456789abcdefghijkl"


def test_no_file_log_or_card_has_it(
    make_model: Callable[..., Path],
    write_config: Callable[..., Path],
    lors: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(tmp_path / CANARY / "model")
    data = tmp_path / CANARY / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text(json.dumps({"text": "the assert statement is a convenient way " * 40}) + "\n")
    for folder in (tmp_path / CANARY, model, data):
        for name in ("token", "vocab_notes.txt", ".env", "notes.md"):
            (folder / name).write_text(CANARY)
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "tokenizer_file")):
        content: dict[str, Any] = json.loads((model / name).read_text()) | {
            "hub_token": CANARY,
            "use_auth_token": "of-no-known-form",
            CANARY: 1,
        }
        (model / name).write_text(json.dumps(content | {key: str(model / "tokenizer.json")}))
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("OWN_SECRET", f"https://me:{CANARY}@host/x")
    monkeypatch.setattr("sys.argv", ["lors", f"model=https://me:{CANARY}@host/x", f"name={CANARY}"])
    dataset = {"path": str(data / "rows.jsonl"), "format": "text"}
    calibration = {"dataset": dataset, "sequence_length": 32, "samples": 2}
    config = write_config(model=str(model), prune__calibration=calibration, train__dataset=dataset)
    said = [lors(*command).output for command in (("run", config), ("report", tmp_path / "run"))]
    for stage in ("pruned", "adapter", "merged"):
        said.append(lors("push", tmp_path / "run" / stage, "someone/sparse", "--dry-run").output)
    place = f"{tmp_path / CANARY}{os.sep}"  # where the model lies, which its owner may read on his own screen
    for text in said:
        assert CANARY not in text.replace(place, "")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"lors.json", "README.md", "config.json", "results.json"} <= {path.name for path in files}
    for path in files:
        assert CANARY.encode() not in path.read_bytes().replace(place.encode(), b""), path
    for name in ("config.json", "tokenizer_config.json", "README.md"):
        text = (tmp_path / "run/merged" / name).read_text()
        assert CANARY not in text
        assert "of-no-known-form" not in text

import json
from pathlib import Path

import pytest

from lors_cli.sequential.record import Record


def test_a_later_record_has_what_an_earlier_one_was_told(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.nothing_done()
    assert record.done("prune") == []
    assert record.nothing_done()
    record.add("profile", {"outliers": 0.5})
    record.add("prune", {"a": 1})
    record.add("prune", {"b": 2})
    later = Record(tmp_path)
    assert not later.nothing_done()
    assert later.done("prune") == [{"a": 1}, {"b": 2}]
    assert later.phases == {"prune": [{"a": 1}, {"b": 2}], "profile": [{"outliers": 0.5}]}


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path)
    monkeypatch.setenv("RANK", "1")
    record.add("prune", {})
    assert len(record.done("prune")) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "edited", "unsealed", "another's"])
def test_a_damaged_file_is_named_and_put_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    Record(tmp_path, "mine").add("prune", {"a": 1}, {"0": "digest"}, {"tensor": "digest"})
    assert Record(tmp_path, "mine").states == {"0": "digest"}
    file = tmp_path / "progress.json"
    text = file.read_text()
    spoilt = {
        "cut": text[:50],
        "edited": text.replace('"a": 1', '"a": 2'),
        "unsealed": json.dumps({"prune": [{"a": 1}]}),
        "another's": text,
    }[damage]
    file.write_text(spoilt)
    record = Record(tmp_path, "yours" if damage == "another's" else "mine")
    assert record.nothing_done()
    assert (record.states, record.written) == ({}, {})
    assert "progress.json cannot be used" in caplog.text
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"progress.json.damaged": spoilt}


def test_a_phase_begins_again_and_the_one_before_it_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Record(tmp_path)
    record.add("profile", {"outliers": 0.5})
    record.add("prune", {"a": 1}, {"0": "digest"}, {"tensor": "digest"})
    record.begin_again("prune", "a file is gone")
    assert "prune: a file is gone" in caplog.text
    later = Record(tmp_path)
    assert later.phases == {"profile": [{"outliers": 0.5}], "prune": []}
    assert (later.states, later.written) == ({}, {})

import json
from pathlib import Path

import pytest

from lors_cli.errors import LorsError
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


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    Record(tmp_path).add("prune", {"a": 1})
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"prune": [{"a": 1}]}
    file.write_text(file.read_text()[:5])
    with pytest.raises(LorsError, match=r"progress\.json is damaged .*--force starts over"):
        Record(tmp_path)

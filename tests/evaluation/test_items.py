"""Results item by item: the same bytes each time, and two ways to read them."""

from pathlib import Path

import pytest

from lors_cli.evaluation import items

ITEMS = [{"doc_id": n, "doc": f"d{n}", "prompt": f"p{n}", "acc": float(n % 2), "f1": 0.25 * n} for n in range(4)]


def test_what_is_written_is_read_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "below/b.jsonl.gz"):
        items.write(tmp_path / name, ITEMS)
        assert items.read(tmp_path / name) == ITEMS
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "below/b.jsonl.gz").read_bytes()


def test_answers_are_the_same_whether_lines_are_as_written_or_not(tmp_path: Path) -> None:
    items.write(tmp_path / "plain.jsonl.gz", ITEMS)
    items.write(tmp_path / "other.jsonl.gz", [{"note": "first", **item, "list": [1, 2]} for item in ITEMS[::-1]][::-1])
    items.write(tmp_path / "sorted.jsonl.gz", [dict(sorted(item.items())) for item in ITEMS])  # to be parsed
    names, values = items.answers(tmp_path / "plain.jsonl.gz", "f1")
    assert values == [0.0, 0.25, 0.5, 0.75]
    assert names.count(b"\n") == 3
    assert items.answers(tmp_path / "other.jsonl.gz", "f1") == (names, values)
    assert items.answers(tmp_path / "sorted.jsonl.gz", "f1") == (names, values)
    with pytest.raises(KeyError):
        items.answers(tmp_path / "plain.jsonl.gz", "bleu")


def test_folders_of_models_of_similar_names_differ() -> None:
    assert items.folder("merged", 2) == "items/merged"
    folders = [items.folder(name, place) for place, name in enumerate(("a/b", "a_b", "a:b", "../../etc"))]
    assert len(set(folders)) == 4
    assert all(folder.startswith("items/") and ".." not in folder for folder in folders)

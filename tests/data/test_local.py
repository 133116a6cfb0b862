import logging
from pathlib import Path

import datasets
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from lors_cli.data import local
from lors_cli.errors import RequestError
from tests.data.files import make, source, texts


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder whose name, other than pytest's, tells no split."""
    (tmp_path / "words").mkdir()
    return tmp_path / "words"


LAYOUTS = [
    ("a.jsonl", "b.jsonl"),
    ("train.jsonl", "test.jsonl"),
    ("train.jsonl", "valid.jsonl", "eval.jsonl"),
    ("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl"),
    ("my-train-1.jsonl", "my-train-2.jsonl", "my_test_1.jsonl"),
    ("c4-train.00000-of-00002.json", "c4-train.00001-of-00002.json", "c4-validation.00000-of-00001.json"),
    ("train-00000-of-00002.json", "train-00001-of-00002.json", "test-00000-of-00001.json"),
    ("data/train_sft-00000-of-00001.json", "data/test_sft-00000-of-00001.json", "data/train_gen-00000-of-00001.json"),
    ("train/a.jsonl", "train/b.jsonl", "validation/a.jsonl", "test/a.jsonl"),
    ("data/train/a.jsonl", "data/testing/a.jsonl"),
    ("en/train/a.jsonl", "en/val_set/a.jsonl"),
    ("protest.jsonl", "latest.jsonl", "training.jsonl"),
    ("contest.jsonl", "evaluate.jsonl"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout[0])
def test_splits_of_a_folder_are_those_of_the_hub(tmp_path: Path, layout: tuple[str, ...]) -> None:
    make(tmp_path, *layout, ".hidden/train.jsonl", "__cache__/test.jsonl", ".test.jsonl")
    (tmp_path / "README.md").write_text("# Words\n")
    hub = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), base_path=str(tmp_path))
    for split, files in hub.items():
        expected = sorted(str(Path(file).relative_to(tmp_path)) for file in files)
        assert texts(tmp_path, split=str(split)) == expected
    if "train" in hub:
        assert texts(tmp_path) == texts(tmp_path, split="train")
    for asked in {"train", "test", "other"} - set(map(str, hub)):
        with pytest.raises(RequestError, match=": " + ", ".join(sorted(map(str, hub)))):
            texts(tmp_path, split=asked)


def test_the_words_of_a_split_are_the_same_split(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "dev.jsonl")
    for word in ("dev", "valid", "validation", "val"):
        assert texts(tmp_path, split=word) == texts(tmp_path / "dev.jsonl", split=word) == ["dev.jsonl"]


def test_what_no_split_names_is_not_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "train.jsonl", "more.jsonl")
    with caplog.at_level(logging.WARNING):
        assert texts(tmp_path) == ["train.jsonl"]
    assert "not read, as their names tell no split: more.jsonl" in caplog.text
    (tmp_path / "train.jsonl").rename(tmp_path / "Test.jsonl")
    with pytest.raises(RequestError, match=r"'train'; by their names of no split: more.jsonl(?s:.*)split: test"):
        texts(tmp_path)


def test_rows_to_measure_with_are_never_those_to_train_on_by_default(tmp_path: Path) -> None:
    make(tmp_path, "both/train.jsonl", "both/test.jsonl", "one/test.jsonl")
    for key in ("eval.perplexity.dataset", "train.eval_dataset", "choose.held_out"):
        with pytest.raises(RequestError, match=r"test, train(?s:.*)none(?s:.*)split: test"):
            texts(tmp_path / "both", key)
        assert texts(tmp_path / "both", key, split="test") == ["both/test.jsonl"]
        assert texts(tmp_path / "one", key) == ["one/test.jsonl"]
    make(tmp_path, "both/validation.jsonl")
    with pytest.raises(RequestError, match=r"split: validation}"):
        texts(tmp_path / "both", "train.eval_dataset")


@pytest.mark.parametrize("name", ["train_test.jsonl", "train/test.jsonl", "validation/my-train-set.jsonl"])
def test_a_name_that_tells_two_splits_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "train.jsonl", name)
    with pytest.raises(RequestError, match=f"{name}, which is of one by its name and of another"):
        texts(tmp_path)
    assert texts(tmp_path / name) == [name]


def test_a_glob_that_mixes_splits_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train-1.jsonl", "train-2.jsonl", "more.jsonl", "test.jsonl")
    with pytest.raises(RequestError, match=r"more.jsonl \(train\)|train-1.jsonl \(train\) and test.jsonl \(test\)"):
        texts(tmp_path / "*.jsonl")
    assert texts(tmp_path / "*.jsonl", split="train") == ["train-1.jsonl", "train-2.jsonl"]
    assert texts(tmp_path / "[mt]*r*.jsonl") == ["more.jsonl", "train-1.jsonl", "train-2.jsonl"]
    assert texts(tmp_path / "test*") == ["test.jsonl"]
    with pytest.raises(RequestError, match="one of the splits"):
        texts(tmp_path / "test*", split="train")


def test_the_split_of_a_single_file_is_what_its_name_tells(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "test.jsonl", "data/train_sft-00000-of-00001.json")
    for name, split in (("a.jsonl", "train"), ("test.jsonl", "test")):
        assert texts(tmp_path / name) == texts(tmp_path / name, split=split) == [name]
    assert len(texts(tmp_path / "data/train_sft-00000-of-00001.json", split="train_sft")) == 1
    for name, split in (("a.jsonl", "test"), ("test.jsonl", "train"), ("data/train_sft-00000-of-00001.json", "train")):
        with pytest.raises(RequestError, match="by its name of another"):
            texts(tmp_path / name, split=split)


def test_a_folder_as_datasets_saves_it(tmp_path: Path) -> None:
    both = {name: datasets.Dataset.from_list([{"text": f"{name} {n}"} for n in range(3)]) for name in ("test", "train")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    both["test"].select([2, 0]).save_to_disk(tmp_path / "some", num_shards=2)
    (tmp_path / "some" / "cache-0123.arrow").write_bytes(b"left by map")
    assert texts(tmp_path / "both") == [f"train {n}" for n in range(3)]
    assert texts(tmp_path / "both", split="test", limit=2) == ["test 0", "test 1"]
    assert texts(tmp_path / "both" / "test") == [f"test {n}" for n in range(3)]
    with pytest.raises(RequestError, match=r"'train' for .*test, by its name of another"):
        texts(tmp_path / "both" / "test", split="train")
    assert texts(tmp_path / "some") == ["test 2", "test 0"]
    with pytest.raises(RequestError, match=r"test, train(?s:.*)'dev'"):
        texts(tmp_path / "both", split="dev")
    with pytest.raises(RequestError, match="no name"):
        texts(tmp_path / "both", name="default")
    before = source(tmp_path / "some").identity()
    assert "digest" in before
    (tmp_path / "some" / "state.json").write_text("{}")
    with pytest.raises(RequestError, match="save_to_disk"):
        texts(tmp_path / "some")


def test_a_cloned_repository_with_configs(tmp_path: Path) -> None:
    make(tmp_path, "en/first.jsonl", "en/second.jsonl", "de/first.jsonl")
    head = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: en/first.jsonl\n"
    second = "- config_name: de\n  data_files: de/*.jsonl\n"
    card = tmp_path / "README.md"
    card.write_text(head.format("en") + "  - split: held\n    path: en/second.jsonl\n---\n")
    assert texts(tmp_path) == ["en/first.jsonl"]
    assert texts(tmp_path, split="held") == texts(tmp_path, split="held", name="en") == ["en/second.jsonl"]
    card.write_text(head.format("en") + second + "---\n")
    assert texts(tmp_path, name="de") == ["de/first.jsonl"]
    for name in (None, "fr"):
        with pytest.raises(RequestError, match=r"one of en, de(?s:.*)name: en"):
            texts(tmp_path, name=name)
    (tmp_path / "README.md").unlink()
    with pytest.raises(RequestError, match="no name for a local"):
        texts(tmp_path, name="de")


def test_documents_beside_the_data_are_not_data(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "sub/b.jsonl")
    for name in ("LICENSE.txt", "README.md", "requirements.txt", "dataset_infos.json", ".DS_Store", "load.py", "a.bak"):
        (tmp_path / name).write_text("nothing to read")
    assert texts(tmp_path) == ["a.jsonl", "sub/b.jsonl"]


@pytest.mark.parametrize("name", ["b.parquet", "b.txt", "b.csv", "b.zip", "sub/b.tsv"])
def test_files_of_several_kinds_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.jsonl", name)
    for path in (tmp_path, tmp_path / "**" / "*"):
        with pytest.raises(RequestError, match=Path(name).name):
            texts(path)
    assert texts(tmp_path / "*.jsonl") == ["a.jsonl"]  # as the remedy says


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "blobs/0123", "data/a.jsonl")
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert texts(tmp_path / "data") == ["data/a.jsonl", "blobs/0123"]
    (tmp_path / "blobs" / "0123").unlink()
    with pytest.raises(RequestError, match=r"b.jsonl"):
        texts(tmp_path / "data")


def test_what_can_only_be_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "owner/name/a.jsonl", "my/alpaca.jsonl")
    for path in ("./x", "../x", "/x", "~/x", "a/b/c", "x/", "$HOME/x", "a.csv", "https://host/x", "owner/name", "x*"):
        assert local.is_local(path), path
    for path in ("wikitext", "Salesforce/wikitext", "my/other", "some-one/data_set.v2"):
        assert not local.is_local(path), path
    assert texts("owner/name") == texts("owner/name/") == ["owner/name/a.jsonl"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("my/alpca.jsonl", "did you mean 'alpaca.jsonl'"),
        ("$DATA/a.jsonl", "variables of the environment are not replaced"),
        ("https://host/a.jsonl", "download it"),
        ("my/b*.jsonl", "none that matches"),
        ("my/empty", "files ending in"),
        ("my/sub/x/y", "which does not exist"),
    ],
)
def test_a_path_with_nothing_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "my/alpaca.jsonl")
    (tmp_path / "my" / "empty").mkdir()
    with pytest.raises(RequestError, match=expected):
        texts(path)


def test_the_same_rows_in_two_forms_are_not_read_twice(tmp_path: Path) -> None:
    for others in ("jsonl.gz", "json", "JSONL.zst"):
        folder = make(tmp_path / others, "1.train.jsonl", "2.train.jsonl", f"2.train.{others}")
        with pytest.raises(RequestError, match=r"2.train.*the same rows in another form"):
            texts(folder)
    assert texts(tmp_path / "jsonl.gz" / "*.jsonl") == ["1.train.jsonl", "2.train.jsonl"]


def test_the_split_of_a_folder_that_is_named_is_what_its_name_tells(tmp_path: Path) -> None:
    make(tmp_path, "test/a.jsonl", "my-test/a.jsonl", "plain/a.jsonl")
    for path in ("test", "test/*", "test/a.jsonl"):
        assert texts(tmp_path / path) == texts(tmp_path / path, split="test") == ["test/a.jsonl"]
        with pytest.raises(RequestError, match=r"'train' for .*, by its name of another"):
            texts(tmp_path / path, split="train")
    for path in ("my-test", "my-test/*", "my-test/a.jsonl"):
        assert texts(tmp_path / path, split="train") == texts(tmp_path / path, split="test") == ["my-test/a.jsonl"]
    with pytest.raises(RequestError, match="'validation' for"):
        texts(tmp_path / "plain", split="validation")
    with pytest.raises(RequestError, match=r"which matches a\.jsonl"):
        texts(make(tmp_path / "both", "train/a.jsonl", "test/a.jsonl") / "*" / "*.jsonl")


def test_a_repository_that_was_cloned_in_part_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a.jsonl")
    card = "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: gone/a.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    with pytest.raises(RequestError, match="fetch the whole repository"):
        texts(tmp_path)


def test_shards_that_are_not_there_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "c4-train.00000-of-01024.json", "c4-train.00007-of-01024.json")
    with caplog.at_level(logging.WARNING):
        assert len(texts(tmp_path / "c4-train.00000-of-01024.json")) == 1
        assert not caplog.text
        assert len(texts(tmp_path)) == 2
    assert "2 of the 1024 files c4-train.* are there" in caplog.text


def test_a_row_is_named_by_its_file_and_its_number_there(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"words": "c"}\n')
    with pytest.raises(RequestError, match=r"b\.jsonl, row 2: the fields(?s:.*)field: words"):
        texts(tmp_path)
    assert len(texts(tmp_path, limit=2)) == 2
    assert [row["text"] for row in source(tmp_path, limit=2).rows(1)] == ["b"]


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_table_of_text_is_converted_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("a.csv" if separator == "," else "a.tsv")
    file.write_text(f'text{separator}id\nNA{separator}007\n"a, b\nc"{separator}\n')
    with pytest.raises(RequestError, match=r"name what pandas\.read_csv") as error:
        texts(file)
    remedy = str(error.value).partition("remedy:")[2]
    exec("import pandas; " + remedy[remedy.index("pandas.") : remedy.index(" makes")])  # noqa: S102
    assert list(source("rows.jsonl").rows()) == [{"text": "NA", "id": "007"}, {"text": "a, b\nc", "id": ""}]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl", "train_ids.txt"),
        ("train-1.jsonl", "train-2.jsonl", "test.jsonl", "train.csv"),
        ("a.jsonl", "b.jsonl", "c.parquet"),
        ("train.json", "train.jsonl", "test.json"),
    ],
)
def test_the_files_that_a_message_says_to_name_are_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    with pytest.raises(RequestError, match="name those to read by their ending") as error:
        texts(tmp_path)
    path, _, split = str(error.value).rpartition("{path: ")[2].partition("}")[0].partition(", split: ")
    read = texts(path, split=split or None)
    assert read
    assert not any("test" in text for text in read)

from pathlib import Path

import pytest

from lors_cli.artifacts.public import hidden, text_without_places, without_places, without_secrets


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/someone/data/c4.jsonl.gz", "c4.jsonl.gz"),
        ("~/models/secret plans", "secret plans"),
        ("/data/parts/", "parts"),
        ("runs/quickstart", "runs/quickstart"),
        ("owner/name", "owner/name"),
        ("2:4", "2:4"),
        ("score = |W| / sum", "score = |W| / sum"),
        ("/", "/"),
        (0.5, 0.5),
        (None, None),
        ("file:///home/someone/x.json", "x.json"),
        ("C:\\Users\\someone\\model", "model"),
        ("https://someone:word@host/x", "https://host/x"),
        ("hf_" + "a" * 34, "<secret>"),
        ({"models": ["dense", "/a/b"], "/x/y": {"path": "/x/y"}}, {"models": ["dense", "b"], "y": {"path": "y"}}),
        (
            {"command": "/venv/bin/lors run ~/c.yaml output_dir=/x/y model=owner/name eval.models=[dense,/a/b,./c/d]"},
            {"command": "lors run c.yaml output_dir=y model=owner/name eval.models=[dense,b,./c/d]"},
        ),
    ],
)
def test_only_the_last_part_of_an_absolute_path_is_left(value: object, expected: object) -> None:
    assert without_places(value) == expected


def test_a_text_loses_the_paths_that_its_data_have() -> None:
    data = {"models": {"/a/b": {"path": "/a/b"}, "/a/b/c": {}}, "dataset": "/a/b/c/d.jsonl"}
    assert text_without_places("| /a/b | /a/b/c | from /a/b/c/d.jsonl, 1/2", data) == "| b | c | from d.jsonl, 1/2"


def test_what_stands_in_a_secret_variable_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("TOKENIZER", "models/llama")
    assert without_secrets(f"{tmp_path} models/llama") == f"{tmp_path} models/llama"
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-hub")
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-hub-and-more")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    text = "x=canary-of-the-hub y=canary-of-the-hub-and-more z=false git+ssh://me:pw@host/x hf_short me@host"
    assert without_secrets(text) == "x=<secret> y=<secret> z=false git+ssh://host/x hf_short me@host"


def test_plain_data_keeps_its_places_and_loses_its_secrets() -> None:
    assert hidden({"a": ["/x/y", "hf_" + "a" * 34, {"b": "ssh://me:pw@h/x"}], "n": 1}) == {
        "a": ["/x/y", "<secret>", {"b": "ssh://h/x"}],
        "n": 1,
    }

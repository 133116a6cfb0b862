"""A tokenizer.model without a tokenizer.json is read as SentencePiece reads it, or refused with what helps."""

import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from lors_cli.data import builtin
from lors_cli.errors import RequestError
from lors_cli.models import load, sentencepiece_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a tokenizer.model of its own, and no other file of a tokenizer."""
    (tmp_path / "text.txt").write_text("\n".join(builtin.texts("test"))[:200_000])
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def test_with_its_config_it_is_read_as_it_was_made(directory: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load.load_tokenizer(directory)
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    text = "the assert statement is a convenient way"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)


def test_alone_it_is_refused_because_texts_would_begin_otherwise(directory: Path) -> None:
    with pytest.raises(RequestError, match=r"copy tokenizer_config\.json"):
        load.load_tokenizer(directory)


def test_what_is_missing_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise ImportError("`tiktoken` is required")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read)
    monkeypatch.setattr(sentencepiece_model, "is_readable", lambda: False)
    with pytest.raises(RequestError, match="pip install protobuf"):
        load.load_tokenizer(directory)

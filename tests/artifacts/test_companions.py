"""What goes with a model: its tokenizer, whole, its configs without places and code, and nothing of anybody else's."""

import ast
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from transformers import AutoTokenizer

from lors_cli.artifacts import companions, digest, model_files
from lors_cli.data import builtin

COMPANIONS = {
    "config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer.model.v3": "x",
    "processor_config.json": "{}",
    "preprocessor_config.json": "{}",
    "additional_chat_templates/tool.jinja": "tools",
    "LICENSE": "",
    "LICENSE-MODEL": "",
    "licence.md": "",
    "NOTICE.txt": "",
    "USE_POLICY.md": "",
    "structure.json": "{}",
}
CODE = {
    "modeling_own.py": "x = 1",
    "special.tiktoken": "x",
    "custom_generate/generate.py": "x = 1",
    "custom_generate/requirements.txt": "",
}
LEFT = {
    "README.md": "",
    "lors.json": "{}",
    ".gitattributes": "",
    "optimizer.pt": "",
    "trainer_state.json": "{}",
    "training_args.bin": "",
    "rng_state.pth": "",
    "adapter_config.json": "{}",
    "consolidated.00.pth": "",
    "model.onnx": "",
    "model.safetensors": "",
    "model.safetensors.index.json": "{}",
    "events.out.tfevents.1": "",
    "original/params.json": "{}",
    "checkpoint-5/config.json": "{}",
    "additional_chat_templates/__pycache__/x.pyc": "",
    "additional_chat_templates/deep/config.json": "{}",
    "vocab_notes.txt": "hf_canary",
    "notes.json": "{}",
    "embeddings.npy": "",
    "LICENSE.pkl": "",
    "license.zip": "",
    "config.json.bak": "",
    "\x1b[2Jx.json": "{}",
    "token": "",
}


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("trust", [False, True])
def test_what_goes_with_a_model(tmp_path: Path, trust: bool, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "source", {**COMPANIONS, **CODE, **LEFT})
    (source / "custom_generate/data.pkl").write_bytes(pickle.dumps([1]))
    (tmp_path / "target").mkdir()
    with caplog.at_level(logging.INFO):
        companions.copy(source, tmp_path / "target", trust_remote_code=trust)
    wanted = {**COMPANIONS, **CODE} if trust else COMPANIONS
    assert set(model_files.files(tmp_path / "target")) == set(wanted)
    assert all((tmp_path / "target" / name).read_text() == text for name, text in wanted.items())
    (line,) = (record.message for record in caplog.records if "not copied" in record.message)
    assert "vocab_notes.txt" in line
    assert "checkpoint-5/" in line
    assert ("modeling_own.py" in line) is not trust
    assert "\x1b" not in line


def test_named_templates_reach_the_output_and_count(
    make_model: Callable[..., Path], tokenizer: Any, tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model")
    before = digest.of_directory(path)
    own = AutoTokenizer.from_pretrained(path)
    own.chat_template = {"default": own.chat_template, "tool_use": "{{ 1 }}"}
    own.save_pretrained(path)
    (tmp_path / "out").mkdir()
    companions.copy(path, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == own.chat_template
    assert digest.of_directory(path) != before


@pytest.mark.parametrize("key", model_files.STORAGE)
def test_what_the_config_says_of_storage_does_not_reach_the_output(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1, key: {"sparsity_config": {"format": "dense"}}}))
    (tmp_path / "out").mkdir()
    companions.copy(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"a": 1}


def test_a_config_that_says_nothing_of_places_is_copied_byte_for_byte(tmp_path: Path) -> None:
    text = '{ "b": 1,\n"eos_token": "/end", "dtype":"float32"}'
    write(tmp_path, {"config.json": text, "tokenizer_config.json": text})
    (tmp_path / "out").mkdir()
    companions.copy(tmp_path, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == text
    assert (tmp_path / "out/tokenizer_config.json").read_text() == text


def test_places_and_code_do_not_reach_the_output() -> None:
    config = {
        "_name_or_path": "/home/someone/secret/llama",
        "tokenizer_file": "~/models/tokenizer.json",
        "cache": {"deep": ["/home/someone/x", "kept"]},
        "auto_map": {"AutoModelForCausalLM": "owner/name--modeling.Own"},
        "text_config": {"auto_map": {}, "hidden_size": 1},
        "eos_token": "/think",
        "extra_special_tokens": ["/no/think"],
        "added_tokens_decoder": {"0": {"content": "/a/b"}},
        "chat_template": "/a/{{ b }}",
    }
    kept = {key: config[key] for key in ("eos_token", "extra_special_tokens", "added_tokens_decoder", "chat_template")}
    cleaned = {"_name_or_path": "llama", "tokenizer_file": "tokenizer.json", "cache": {"deep": ["x", "kept"]}}
    assert companions.cleaned(config) == {**cleaned, "text_config": {"hidden_size": 1}, **kept}
    trusted = companions.cleaned(config, trust_remote_code=True)
    assert (trusted["auto_map"], trusted["_name_or_path"]) == (config["auto_map"], "llama")


def named_by_transformers() -> Iterator[str]:
    """The names in each literal ``vocab_files_names`` of transformers' tokenizers."""
    (root,) = transformers.__path__
    for file in Path(root).glob("**/tokenization*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            named = [target for target in getattr(node, "targets", []) if "FILES_NAMES" in ast.unparse(target).upper()]
            if named and isinstance(value := getattr(node, "value", None), ast.Dict):
                yield from (str(part.value) for part in value.values if isinstance(part, ast.Constant))


def test_every_tokenizers_files_travel() -> None:
    names = set(named_by_transformers())
    assert {"vocab.txt", "sentencepiece.bpe.model", "source.spm"} <= names
    assert [name for name in sorted(names) if not companions.belongs(name)] == []


def vocabulary(path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "assert", "##s", "statement", "is"]
    (path / "vocab.txt").write_text("\n".join(words))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def pairs(path: Path) -> None:
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "th", "the", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({text: number for number, text in enumerate(letters)}))
    (path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


def pieces(path: Path, name: str, owner: str, kind: str) -> None:
    (path / "text.txt").write_text("\n".join(builtin.texts("test"))[:100_000])
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "text.txt"), model_prefix=str(path / "own"), vocab_size=300, model_type=kind, minloglevel=2
    )
    (path / "own.model").rename(path / name)
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": owner}))


def own_tokens(path: Path) -> None:
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>"}')
    (path / "added_tokens.json").write_text('{"<more>": 259}')
    (path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')


MAKERS: dict[str, Callable[[Path], None]] = {
    "bert": vocabulary,
    "gpt2": pairs,
    "llama": lambda path: pieces(path, "tokenizer.model", "LlamaTokenizer", "bpe"),
    "t5": lambda path: pieces(path, "spiece.model", "T5Tokenizer", "unigram"),
    "xlm-roberta": lambda path: pieces(path, "sentencepiece.bpe.model", "XLMRobertaTokenizer", "unigram"),
    "byt5": own_tokens,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_tokenizer_gives_the_same_ids_from_the_output(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    MAKERS[kind](tmp_path)
    (tmp_path / "out").mkdir()
    companions.copy(tmp_path, tmp_path / "out")
    before, after = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the asserts statement is <more>"
    assert len(set(before(text)["input_ids"])) > 3
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.get_vocab() == before.get_vocab()
    assert not (tmp_path / "out/text.txt").exists()

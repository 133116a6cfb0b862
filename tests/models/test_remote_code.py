"""Models of other people: no key of their files runs code, fetches a kernel or opens a file elsewhere."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lors_cli.errors import RequestError
from lors_cli.models import load

CODE = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def model(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A good model, with code that would say that it ran, and a secret beside it."""
    path = make_model(tmp_path / "model")
    (path / "evil.py").write_text(EVIL)
    (tmp_path / "home").mkdir()
    for name in ("token", "vocab.json", "tokenizer.4.0.0.json"):
        (tmp_path / "home" / name).write_text('{"hf_canary": 0}')
    return path


def change(path: Path, name: str, **changes: Any) -> None:
    content = json.loads((path / name).read_text()) | changes
    (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("attn_implementation", {"attn_implementation": "owner/kernel"}),
    ("_attn_implementation", {"_attn_implementation": "owner/kernel@main:function"}),
    ("_attn_implementation_internal", {"_attn_implementation_internal": "owner/kernel"}),
    ("attn_implementation", {"attn_implementation": "paged|owner/kernel"}),
    ("attn_implementation", {"attn_implementation": {"": "sdpa", "text_config": "owner/kernel"}}),
    ("attn_implementation", {"attn_implementation": ["owner/kernel"]}),
    ("attn_implementation", {"attn_implementation": "flash_attention_3"}),
    ("text_config.attn_implementation", {"text_config": {"attn_implementation": "owner/kernel"}}),
    ("parts.attn_implementation", {"parts": [{"attn_implementation": "owner/kernel"}]}),
    ("experts_implementation", {"experts_implementation": "owner/kernel"}),
    ("experts_implementation", {"experts_implementation": "sonicmoe"}),
    ("use_kernels", {"use_kernels": True}),
    ("kernel_config", {"kernel_config": {"RMSNorm": "owner/kernel"}}),
    ("auto_map", {"auto_map": CODE, "model_type": "evil"}),
    ("auto_map", {"auto_map": CODE, "model_type": ...}),
    ("auto_map", {"auto_map": {"AutoConfig": "owner/name--evil.C"}, "model_type": ["llama"]}),
    ("auto_map", {"auto_map": "AutoModelForCausalLM"}),
    ("text_config.auto_map", {"text_config": {"auto_map": CODE}}),
    ("text_config.transformers_weights", {"text_config": {"transformers_weights": "../home/token"}}),
    ("configuration_files", {"configuration_files": ["../home/config.4.0.0.json"]}),
    ("dtype", {"dtype": "load"}),
    ("dtype", {"dtype": 5}),
    ("torch_dtype", {"torch_dtype": {"": "float32"}}),
    ("eos_token_id", {"eos_token_id": [1, "x"]}),
    ("eos_token_id", {"eos_token_id": True}),
]


@pytest.mark.parametrize(("key", "changes"), CONFIGS)
def test_a_config_that_names_code_or_files_elsewhere(model: Path, key: str, changes: dict[str, Any]) -> None:
    change(model, "config.json", **changes)
    for read in (lambda: load.skeleton(model), lambda: load.load_model(model, "auto", torch.device("cpu"))):
        with pytest.raises(RequestError) as caught:
            read()
        assert caught.value.problems[0].key == f"model: {key}"
    assert not (model / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "eager"},
        {"_attn_implementation": {"": "sdpa"}},
        {"auto_map": CODE, "custom_pipelines": {"x": {"impl": "evil.P"}}, "trust_remote_code": True},
        {"auto_map": {}, "use_kernels": False},
        {"_name_or_path": "/home/someone/llama"},
    ],
)
def test_what_transformers_does_itself_is_read(model: Path, changes: dict[str, Any]) -> None:
    change(model, "config.json", **changes)
    load.load_model(model, "auto", torch.device("cpu"))
    assert not (model / "ran").exists()


TOKENIZERS: list[tuple[str, dict[str, Any]]] = [
    ("tokenizer_class", {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "EvilTokenizer"}),
    ("tokenizer_class", {"auto_map": ["evil.T", None], "tokenizer_class": ...}),
    ("fast_tokenizer_files", {"fast_tokenizer_files": ["../home/tokenizer.4.0.0.json"]}),
    ("fast_tokenizer_files", {"fast_tokenizer_files": 5}),
    ("fast_tokenizer_files", {"fast_tokenizer_files": ["below/tokenizer.4.0.0.json"]}),
    ("dictionary", {"dictionary": "../home/token"}),
    ("mecab_kwargs.mecab_option", {"mecab_kwargs": {"mecab_option": "-r ~/token"}}),
    ("gguf_file", {"gguf_file": "/etc/passwd"}),
    ("init_inputs", {"init_inputs": ["x", "file:///etc/passwd"]}),
]


@pytest.mark.parametrize(("key", "changes"), TOKENIZERS)
def test_a_tokenizer_that_names_code_or_files_elsewhere(model: Path, key: str, changes: dict[str, Any]) -> None:
    change(model, "tokenizer_config.json", **changes)
    with pytest.raises(RequestError) as caught:
        load.load_tokenizer(model)
    assert caught.value.problems[0].key == f"model: {key}"


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """The files that were opened: a hook, which cannot be taken away again, so it fills one list only."""
    names: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening[0] and event == "open":
            names.append(str(arguments[0]))

    sys.addaudithook(hook)
    yield names
    listening[0] = False


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file", "vocab", "merges", "name_or_path"])
@pytest.mark.parametrize("place", ["{}/home/vocab.json", "../home/vocab.json"])
def test_where_a_tokenizer_once_lay_is_not_looked_at(model: Path, opened: list[str], key: str, place: str) -> None:
    before = load.load_tokenizer(model).get_vocab()
    change(model, "tokenizer_config.json", **{key: place.format(model.parent)})
    opened.clear()
    assert load.load_tokenizer(model).get_vocab() == before
    assert any("tokenizer.json" in name for name in opened)
    assert not any("home" in Path(os.path.relpath(name, model.parent)).parts for name in opened if os.path.exists(name))


NONSENSE: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[1]",
    "null": b"null",
    "bytes": b"\x80\x04\x95\xff",
    "deep": b'{"a":' * 100_000,
    "deep and whole": b'{"a":' * 900 + b"1" + b"}" * 900,
    "many digits": b'{"hidden_size":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused_for_what_it_is(model: Path, name: str, kind: str) -> None:
    (model / name).write_bytes(NONSENSE[kind])
    with pytest.raises(RequestError) as caught:
        load.load_tokenizer(model, load.skeleton(model))
    assert str(model) in str(caught.value)


def test_a_tokenizer_that_fails_at_the_first_text(model: Path) -> None:
    change(model, "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(RequestError, match="UNK"):
        load.load_tokenizer(model)


def test_a_template_that_is_no_text(model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    change(model, "tokenizer_config.json", chat_template=5)
    with pytest.raises(RequestError, match="chat template"):
        load.load_tokenizer(model)

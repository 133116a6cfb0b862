"""What in a model's own files would run code, fetch something, or open a file elsewhere: refused before it is read.

transformers takes code from ``auto_map`` and kernels from ``attn_implementation`` and ``experts_implementation``
(``owner/kernel`` is fetched from the hub), at any depth of a config; other keys send it to other files. What it would
run without a question is checked here by what is known to be plain, not by what is known to be code.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lors_cli.artifacts import companions
from lors_cli.artifacts.companions import TEXTS
from lors_cli.artifacts.files import read_object
from lors_cli.errors import request_error

TRUST = "trust_remote_code: true runs it, if you have read it and trust it; otherwise delete the key"
AGAIN = "copy the file from the model again"
# They may say where code or weights lie: which implementation of a part is taken, and from which files.
IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")
KERNELS = re.compile(r"use_(hub_)?kernels?|(hub_)?kernel_(config|mapping)")
ELSEWHERE = {"configuration_files": "config.json", "transformers_weights": "model.safetensors"}
# Keys of tokenizer_config.json whose files transformers finds by itself: programs note there where they once lay.
NOTED = re.compile(
    r"_?name_or_path|cache_dir|(tokenizer|special_tokens_map|added_tokens|vocab|merges)_file|vocab|merges"
)
# From a slash, a tilde or a drive that begins a word, or a step out of the directory.
LEADS_OUT = re.compile(r"(^|\s)(file://|~?[/\\]|[A-Za-z]:[/\\])|(^|[/\\\s])\.\.([/\\]|$)")


def check_config(directory: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The content of config.json, checked to need nothing but transformers itself unless code may run.

    Raises:
        RequestError: it is not an object of JSON, or names code, kernels or files elsewhere.

    """
    file = directory / "config.json"
    others = [directory / name for name in companions.CONFIGS if (directory / name).is_file()]
    contents = {path: _read(path) for path in dict.fromkeys([file, *others])}
    for path in (directory / "generation_config.json", file):
        _check_stop_tokens(path, contents.get(path, {}))
    config = contents[file]
    if not isinstance(config.get("auto_map") or {}, dict):
        raise request_error("model: auto_map", "an object", repr(config["auto_map"]), AGAIN, file)
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise request_error("model: architectures", "a list of names", repr(named), AGAIN, file)
    for where, key, value in _entries(config):
        if key in ELSEWHERE and value:
            remedy = f"rename that file to {ELSEWHERE[key]} (weights in several: with its index), and delete the key"
            raise request_error(f"model: {where}", "no other files than those beside it", repr(value), remedy, file)
        if key in ("dtype", "torch_dtype") and value is not None and not _is_dtype(value):
            got = f"{value!r}, a dtype that PyTorch does not have"
            raise request_error(f"model: {where}", "float32, bfloat16 or float16", got, "set it to one of these", file)
        if trust_remote_code or not value:
            continue
        if IMPLEMENTATION.fullmatch(key):
            names = value.values() if isinstance(value, dict) else [value]
            known = implementations(key)
            if other := next((name for name in names if name is not None and name not in known), None):
                expected = f"an implementation of transformers that is installed: {', '.join(known)}"
                raise request_error(f"model: {where}", expected, repr(other), TRUST, file)
        if KERNELS.fullmatch(key) or (key == "auto_map" and not (where == key and _is_known(config))):
            raise request_error(f"model: {where}", "no code but that of transformers", repr(value), TRUST, file)
    return config


def _check_stop_tokens(file: Path, content: dict[str, Any]) -> None:
    """Refuse tokens that end texts where they are not numbers: they would be passed over."""
    tokens = content.get("eos_token_id")
    listed = tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]
    if not all(type(token) is int for token in listed):
        expected = "the number of a token, or a list of them"
        raise request_error("model: eos_token_id", expected, repr(tokens), AGAIN, file)


def _is_dtype(value: Any) -> bool:
    """Whether it is how configs name a dtype: of the whole model, and by its name alone."""
    return isinstance(value, str) and (value == "auto" or isinstance(getattr(torch, value, None), torch.dtype))


def check_tokenizer(directory: Path, *, trust_remote_code: bool) -> dict[str, None]:
    """What to pass to transformers besides the directory: nothing in place of each file that the config says it had.

    Raises:
        RequestError: tokenizer_config.json is not an object of JSON, or names code or files elsewhere.

    """
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return {}
    config = _read(file)
    if config.get("auto_map") and not trust_remote_code:
        name = config.get("tokenizer_class")
        if not isinstance(name, str) or not any(map(tokenizer_class_from_name, (name, f"{name}Fast"))):
            expected, got = "a tokenizer that transformers has", f"{name!r}, with auto_map {config['auto_map']!r}"
            raise request_error("model: tokenizer_class", expected, got, TRUST, file)
    noted = {key for key, value in config.items() if NOTED.fullmatch(key) and isinstance(value, str)}
    for where, key, value in _entries(config):
        inside = where.split(".")[0]
        if inside in noted or any(TEXTS.fullmatch(part) for part in where.split(".")):
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and LEADS_OUT.search(text):
                remedy = "delete the key, or put the file into the directory and write its name alone"
                raise request_error(f"model: {where}", "the name of a file beside it", repr(text), remedy, file)
        plain = isinstance(value, list) and all(os.path.basename(str(text)) == text for text in value)
        if key == "fast_tokenizer_files" and not plain:
            raise request_error(f"model: {where}", "names of files beside it", repr(value), "delete the key", file)
    return dict.fromkeys(noted - {"name_or_path", "_name_or_path"})


def implementations(key: str) -> list[str]:
    """The implementations of attention, or of experts, that need no kernel from the hub."""
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    if "experts" in key:
        return ["eager", "batched_mm", "grouped_mm"]
    versions = FLASH_ATTENTION_COMPATIBILITY_MATRIX.items()
    # where one of these is not installed, transformers fetches a kernel in its place
    flash = [f"flash_attention_{version}" for version, facts in versions if facts["general_availability_check"]()]
    return ["eager", "sdpa", "flex_attention", *flash]


def _is_known(config: dict[str, Any]) -> bool:
    """Whether transformers has the architecture, and so passes over the code that the config names."""
    from transformers import CONFIG_MAPPING

    return isinstance(config.get("model_type"), str) and config["model_type"] in CONFIG_MAPPING


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise request_error("model", "an object of JSON", f"a damaged file: {error}", AGAIN, file) from None


def _entries(value: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each key of an object and of those in it, with its path and its value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{where}{key}", key, part
            yield from _entries(part, f"{where}{key}.")
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, where)

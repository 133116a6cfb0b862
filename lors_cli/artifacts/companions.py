"""Which files beside the weights belong to a model, and so travel with it: an allow-list, by name.

What else lies in a directory (notes, pickles, archives, other people's files) stays where it is. Code travels only
where it may run. Configs lose what says where they lay, and, where code may not run, what names it.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lors_cli.artifacts import model_files
from lors_cli.artifacts.files import CARD, read_object
from lors_cli.artifacts.public import TOKEN, without_places

log = logging.getLogger(__name__)

# JSON files of settings. transformers reads them all, and programs note in them where a model lay.
CONFIGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
# The names that transformers' tokenizers have for their files; tests compare them with `vocab_files_names`.
TOKENIZER = (
    *("tokenizer.json", "tokenizer.*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tiktoken.model", "tekken.json"),
    *("tokenizer.model", "tokenizer.model.v*"),
    *("spiece.model", "spm.model", "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "target.spm", "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json"),
    *("normalizer.json", "emoji.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json"),
    *("bpe.codes", "dict.txt", "prophetnet.tokenizer"),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
LICENCE = re.compile(
    r"(licen[cs]e|copying|notice|use_policy)([-_][a-z0-9_-]*)?(\.(txt|md|rst|html|pdf))?", re.IGNORECASE
)
# The vocabularies of tokenizers that are code may have any name before these endings.
WITH_CODE = ("*.py", "*.model", "*.tiktoken", "custom_generate/*.py", "custom_generate/requirements.txt")
# Which keys of a config name code, or say that it may run.
CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
# Keys for what is nobody else's business, whatever it looks like; transformers itself has the first ones.
SECRETS = re.compile(r"token|(use_auth|auth|hub|hf|access|push_to_hub)_token|\w*(secret|password|api_?key)\w*")
# Texts that a tokenizer knows or is given, which may well begin with a slash.
TEXTS = re.compile(r".*(_tokens?|_tokens_decoder|_template)|content|model_specific_special_tokens")


def belongs(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether the file of that name, in a model's directory, is part of the model; weights apart."""
    patterns = (*CONFIGS, *TOKENIZER, *TEMPLATES, model_files.STRUCTURE, *(WITH_CODE if trust_remote_code else ()))
    return any(_matches(name, pattern) for pattern in patterns) or LICENCE.fullmatch(name) is not None


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def copy(source: Path, target: Path, *, trust_remote_code: bool = False) -> None:
    """Copy what belongs to the model in `source` into `target`, except weights and what is there already.

    One line of the log names what is left behind.

    Raises:
        FilesError: a link leads out of `source`.
        ValueError: a config is not a JSON object.

    """
    left, of_lors = [], (CARD, "lors.json", model_files.INDEX)
    for name, path in model_files.files(source).items():
        if not belongs(name, trust_remote_code=trust_remote_code):
            left += [name] if name not in of_lors and path.suffix != model_files.WEIGHTS else []
        elif not (target / name).exists():
            (target / name).parent.mkdir(exist_ok=True, parents=True)
            _copy(path, target / name, trust_remote_code=trust_remote_code)
    left += [f"{path.name}/" for path in _folders(source)]
    if left:
        names = ", ".join(name if name.isprintable() else repr(name) for name in sorted(left))
        log.info("%s: not copied, because it is not part of the model: %s", source, names)


def _copy(path: Path, target: Path, *, trust_remote_code: bool) -> None:
    if target.name in CONFIGS:
        content = read_object(path)
        public = cleaned(content, trust_remote_code=trust_remote_code)
        public = model_files.as_stored(public) if target.name == "config.json" else public
        if public != content:
            target.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n")
            return
    shutil.copyfile(path, target)


def _folders(directory: Path) -> Iterator[Path]:
    """The folders that are not read, nothing hidden."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name not in model_files.FOLDERS and not path.name.startswith((".", "__")):
            yield path


def cleaned(config: dict[str, Any], *, trust_remote_code: bool = False) -> dict[str, Any]:
    """A config without secrets, places and, unless code may run, what names code; a tokenizer's texts stay."""
    kept = {}
    for key, value in config.items():
        is_secret = isinstance(value, str) and (TOKEN.fullmatch(value) or SECRETS.fullmatch(key.lower()))
        if is_secret or TOKEN.search(key) or (key in CODE and not trust_remote_code):
            continue
        if TEXTS.fullmatch(key):
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = cleaned(value, trust_remote_code=trust_remote_code)
        else:
            kept[key] = without_places(value)
    return kept

"""Which split each file of a folder is of, as the hub tells it.

By the words of the names of files and folders (train-00000-of-00002.parquet, validation/a.jsonl, dev.jsonl), unless the
folder says it itself: one that the library `datasets` saved, or one whose card has configs.
"""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from lors_cli.artifacts.files import CARD
from lors_cli.data.hub import Address
from lors_cli.errors import request_error

SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")  # as the hub names what is pushed to it


@dataclass
class Splits:
    """The files of each split, and those whose names tell none, or more than one."""

    named: dict[str, list[Path]] = field(default_factory=dict)
    unnamed: list[Path] = field(default_factory=list)
    doubtful: list[Path] = field(default_factory=list)


def by_name(root: Path, found: list[Path]) -> Splits:
    """The splits of the files `found` below `root`, as their names tell them."""
    splits = Splits()
    above = root.parent if root.name == "data" else root
    shards = {file: shard for file in found if (shard := SHARD.fullmatch(file.relative_to(above).as_posix()))}
    for file in found:
        told = {shards[file][1]} if file in shards else _told(PurePath(file.relative_to(root)))
        if len(told) == 1 and (file in shards or not shards):
            splits.named.setdefault(told.pop(), []).append(file)
        else:
            (splits.doubtful if len(told) > 1 else splits.unnamed).append(file)
    return splits


def _told(place: PurePath) -> set[str]:
    """The splits that a path tells: by the file's name or the nearest folder's that tells any."""
    told = [_words(part) for part in reversed(place.parts)]
    folder: set[str] = next(filter(None, told[1:]), set())
    return told[0] | folder if told[0] and len(folder) == 1 else told[0] or folder


def of_single(file: Path) -> set[str]:
    """The splits that a single file may be called."""
    shard = SHARD.fullmatch(f"{file.parent.name}/{file.name}")
    return {shard[1]} if shard else _words(file.name) or of_nameless(file.parent)


def of_nameless(folder: Path) -> set[str]:
    """The splits that files may be called whose own names tell none: the folder's, if its name is one, or "train"."""
    word = standard(folder.name.lower())
    return {word} if _words(word) == {word} else {"train", *_words(folder.name)}


def standard(split: str) -> str:
    """The hub's word for a split: "validation" for "dev"."""
    return _split_of_word().get(split, split)


def _words(name: str) -> set[str]:
    """The splits whose words occur in the name of a file or folder, by the hub's own table."""
    words = _split_of_word()
    return {words[part] for part in re.split(r"[-._ 0-9]+", name.lower()) if part in words}


@lru_cache(maxsize=1)
def _split_of_word() -> dict[str, str]:
    from datasets.data_files import SPLIT_KEYWORDS

    return {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def saved(source: Address, folder: Path) -> Splits | None:
    """The splits of a folder that the library `datasets` saved; None of any other.

    Raises:
        RequestError: one of its files is missing or damaged.

    """

    def part(folder: Path) -> tuple[str, list[Path]]:
        state = json.loads((folder / "state.json").read_text())
        return state.get("_split") or "", [folder / file["filename"] for file in state["_data_files"]]

    try:
        if (folder / "dataset_dict.json").is_file():
            names = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            return Splits({name: part(folder / name)[1] for name in names})
        if (folder / "state.json").is_file():
            name, files = part(folder)
            return Splits({name: files}) if source.split and name else Splits(unnamed=files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a folder as save_to_disk wrote it"
        raise request_error(source.key, expected, f"{folder}: {error!r}", "save it again") from None
    return None


def of_card(source: Address, folder: Path, configs: list[Any]) -> Splits:
    """The splits of the config that is asked for, as the hub's library reads the card of a folder.

    Raises:
        RequestError: there is no such config, none is asked for of several, or its files are missing.

    """
    import datasets

    try:
        found: Any = datasets.load_dataset_builder(str(folder.resolve()), source.name).config.data_files
    except OSError as error:
        got = f"{folder / CARD}: {error}"
        raise request_error(source.key, "the files that the card names", got, "fetch the whole repository") from None
    except ValueError as error:
        names = [str(config.get("config_name", "default")) for config in configs]
        got = f"{source.name!r}: {folder / CARD}: {(str(error).splitlines() or [repr(error)])[0]}"
        remedy = f"set {source.key}: {{path: ..., name: {names[0]}}}"
        raise request_error(f"{source.key}.name", f"one of {', '.join(names)}", got, remedy) from None
    return Splits({str(split): [Path(file) for file in sorted(found[split])] for split in found})

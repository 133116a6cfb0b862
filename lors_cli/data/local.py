"""Which files a local path stands for: a file, or those of the split that is asked for of a folder or a glob."""

import glob
import logging
import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from lors_cli.artifacts.files import card_data
from lors_cli.data import splits
from lors_cli.data.hub import Address
from lors_cli.data.readers import COMPRESSED, ENDINGS, UNREADABLE, ending
from lors_cli.data.splits import Splits
from lors_cli.errors import nearest, request_error

log = logging.getLogger(__name__)

KINDS = ", ".join(ENDINGS)
# Names, without endings, of what lies beside data and is none.
DOCUMENTS = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "requirements")


def is_local(path: str) -> bool:
    """Whether `path` can only be a place on this machine, whether or not something is there."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    place = Path(path).expanduser()
    known = ending(place) in (*ENDINGS, *UNREADABLE) or place.suffix.lower() in COMPRESSED
    if place.exists() or known or is_glob(path):
        return True
    try:
        validate_repo_id(path)
    except HFValidationError:
        return True
    return False


def is_glob(path: str) -> bool:
    """Whether `path` is a pattern of names, and no name itself."""
    return glob.has_magic(path) and not Path(path).expanduser().exists()


def files(source: Address) -> list[Path]:
    """The files that a local `source` stands for, in the order of their names.

    Raises:
        RequestError: there are none, they cannot be read, or it cannot be told which are of the split.

    """
    path = Path(source.path).expanduser()
    refuse(source, "revision", "data_files")
    if path.is_dir() and (configs := card_data(path).get("configs")):
        return _readable(source, _of_split(source, path, splits.of_card(source, path, configs)))
    refuse(source, "name")
    if path.is_dir():
        chosen = _of_split(source, path, splits.saved(source, path) or splits.by_name(path, _walk(path)))
    elif is_glob(source.path):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(name)]
        chosen = _of_glob(source, [file for file in found if _holds_rows(file)])
    elif path.is_file():
        return _readable(source, _called(source, splits.of_single(path), [path]))
    else:
        raise request_error(source.key, "an existing file", f"{source.path}, which does not exist", hint(source.path))
    _count_shards(source, chosen)
    return _readable(source, chosen)


def refuse(source: Address, *options: str) -> None:
    """Refuse `options` of hub data sets that a local one does not have."""
    for option in options:
        if value := getattr(source, option):
            got, remedy = f"{value!r} for {source.path}", f"remove {option}; a path may be a glob such as data/*.jsonl"
            raise request_error(f"{source.key}.{option}", f"no {option} for a local file", got, remedy)


def hint(path: str) -> str:
    """What to do about a path where nothing is."""
    if "://" in path:
        return "download it, and name the file"
    if "$" in path:
        return "write the path itself: variables of the environment are not replaced"
    place = Path(path).expanduser()
    names = [found.name for found in place.parent.iterdir()] if place.parent.is_dir() else []
    near = nearest(place.name, names) if names else ""
    return f"correct the path; in {place.parent}, {near}" if near.startswith("did you mean") else "correct the path"


def _walk(folder: Path) -> list[Path]:
    """The files with rows in a folder and those below, in the order of their names; nothing hidden."""
    seen = set()
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith((".", "__"))]
        if real not in seen:
            found += [Path(place, name) for name in names]
        seen.add(real)
    return sorted(file for file in found if _holds_rows(file))


def _holds_rows(file: Path) -> bool:
    """Whether a file of that name is one of data, of whatever kind."""
    from datasets.data_files import FILES_TO_IGNORE

    name = file.name.lower()
    beside = name.startswith(".") or name in (*FILES_TO_IGNORE, "state.json") or name.partition(".")[0] in DOCUMENTS
    return not beside and ending(file) in (*ENDINGS, *UNREADABLE)


def _of_split(source: Address, root: Path, found: Splits) -> list[Path]:
    """The files of the split that is asked for; all of them where their names below `root` tell none."""
    if found.doubtful:
        got = f"{found.doubtful[0]}, which is of one by its name and of another as well"
        remedy = "name the files, as in path: data/train*.jsonl, or move the file away"
        raise request_error(f"{source.key}.split", "files whose names tell one split each", got, remedy)
    if not found.named:
        if not found.unnamed:
            got = f"none in {source.path}"
            raise request_error(source.key, f"files ending in {KINDS}", got, "correct the path, or convert the files")
        return _called(source, splits.of_nameless(root), found.unnamed)
    default = "train" if not _is_judge(source) else next(iter(found.named)) if len(found.named) == 1 else ""
    asked = source.split or default
    asked = asked if asked in found.named else splits.standard(asked)
    if asked not in found.named:
        got, remedy = (
            source.split or default,
            f"set {source.key}: {{path: ..., split: {min(found.named, key=_proposed)}}}",
        )
        got = repr(got) if got else "none"
        if found.unnamed:
            got += f"; by their names of no split: {_listed(found.unnamed)}"
            remedy = f"name the files, as in path: {found.unnamed[0]}, or {remedy}"
        expected = f"one of the splits in {source.path}: {', '.join(sorted(found.named))}"
        raise request_error(f"{source.key}.split", expected, got, remedy)
    if found.unnamed:
        _warn_once(f"{source.path}: not read, as their names tell no split: {_listed(found.unnamed)}")
    return found.named[asked]


def _proposed(split: str) -> int:
    """The order in which messages propose splits: what a model is chosen by must not be what it is judged by."""
    return ["validation", split, "test", "train"].index(split)


def _called(source: Address, told: set[str], files: list[Path]) -> list[Path]:
    """The files, unless a split is asked for that they may not be called."""
    if source.split and not told & {source.split, splits.standard(source.split)}:
        expected, got = " or ".join(sorted(told)), f"{source.split!r} for {source.path}, by its name of another"
        raise request_error(f"{source.key}.split", expected, got, "remove split, or name another file or folder")
    return files


def _is_judge(source: Address) -> bool:
    """Whether the rows are to measure with, where the split to train on is no good default."""
    return source.key.startswith(("eval.", "choose.")) or source.key.endswith(".eval_dataset")


def _of_glob(source: Address, found: list[Path]) -> list[Path]:
    """The files of the split that is asked for; without one all, if they are of one."""
    if not found:
        got = f"none that matches {source.path}"
        raise request_error(source.key, f"files ending in {KINDS}", got, "correct the pattern, or convert the files")
    root = Path(os.path.commonpath([file.parent for file in found]))
    told = splits.by_name(root, found)
    if source.split:
        return _of_split(source, root, told)
    different = {"train": told.unnamed, "several": told.doubtful, **told.named}
    different = {name: some for name, some in different.items() if some}
    if len(different) > 1:
        each = " and ".join(f"{some[0].name} ({name})" for name, some in different.items())
        got = f"{source.path}, which matches {each}"
        remedy = f"narrow the pattern, or set {source.key}: {{path: ..., split: train}}"
        raise request_error(source.key, "files of one split", got, remedy)
    return found


def _readable(source: Address, chosen: list[Path]) -> list[Path]:
    """The files, if all of them are of one kind that can be read, and none is another one in another form."""
    kinds: dict[str, Path] = {}
    forms: dict[Path, Path] = {}
    first = next((file for file in chosen if ending(file) in ENDINGS), chosen[0])
    alike = [file for file in chosen if _endings(file) == _endings(first)]
    named = alike[0] if len(alike) == 1 else f"{first.parent}/*{_endings(first)}"
    split = f", split: {min(splits.of_single(first))}" if len(alike) > 1 else ""
    remedy = f"name those to read by their ending, as in {source.key}: {{path: {named}{split}}}"
    for file in chosen:
        if not file.is_file():
            got = f"{file}, which is a dangling link, a pipe, a socket or a device"
            raise request_error(source.key, "files that can be read", got, "move it away, or name the files to read")
        if ending(file) not in ENDINGS:
            expected = f"files ending in {KINDS}, perhaps compressed ({', '.join(COMPRESSED)})"
            others = f", or {remedy}" if ending(first) in ENDINGS else ""
            remedy = "give it the ending of what it holds, or convert it"
            if separator := {".csv": ",", ".tsv": "\t"}.get(ending(file)):  # as they are: NA may be somebody's answer
                read = f"pandas.read_csv({str(file)!r}, sep={separator!r}, dtype=str, keep_default_na=False)"
                remedy = f"name what {read}.to_json('rows.jsonl', orient='records', lines=True) makes of it"
            raise request_error(source.key, expected, str(file), remedy + others)
        plain = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
        other = forms.setdefault(plain.with_suffix(""), file)
        if other is not file:
            got = f"{other} and {file.name}, which looks like the same rows in another form"
            raise request_error(source.key, "each row in one file", got, remedy)
        kinds.setdefault(ENDINGS[ending(file)], file)
    if len(kinds) > 1:
        got = f"{source.path} with {' and '.join(file.name for file in kinds.values())}"
        raise request_error(source.key, "files of one kind", got, remedy)
    return chosen


def _endings(file: Path) -> str:
    """All of the name of a file that says how it is written: .jsonl.gz."""
    return "".join(file.suffixes[-2:] if file.suffix.lower() in COMPRESSED else file.suffixes[-1:])


def _count_shards(source: Address, chosen: list[Path]) -> None:
    """Warn if the names of the files say that there are more: of a large set some are often all that one wants."""
    numbered = [match for file in chosen if (match := re.fullmatch(r"(.*)\d{5}-of-(\d{5}).*", file.name))]
    for (name, whole), count in Counter((match[1], int(match[2])) for match in numbered).items():
        if count < whole:
            _warn_once(f"{source.path}: {count} of the {whole} files {name}* are there, and read")


def _listed(files: list[Path]) -> str:
    """Up to three names, and how many more there are."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(file.name for file in files[:3]) + more


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    log.warning("%s", message)

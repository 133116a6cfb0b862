"""The fields of a row or of a turn: each is used, is known to be metadata, or is refused by its name.

What a field is called decides. Names end with their noun, so `prompt_source` is a source and `system_prompt` a prompt.
Null fields, and those that hold only empty values, say nothing and count as absent: parquet gives every row all fields.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError, request_error

WORDS = {
    kind: frozenset(words.split())
    for kind, words in {
        # the last word of a field that identifies or counts, and the first one
        "identifier": "id ids uid uuid guid identifier hash md5 sha sha1 sha256 index idx count counts length len size",
        "counter": "num n len count id",
        # what a field may be an earlier version of, as original_question is: of what the row has in its place
        "version": "question query problem prompt instruction answer response output solution completion chosen"
        " rejected",
        # the last word of a field that tells where a row comes from, or how good it is
        "metadata": "source sources dataset datasets origin subset split category categories subcategory topic topics"
        " domain domains subject tag tags task tasks type kind lang language languages license licence url urls link"
        " date time timestamp created updated at version model models generator author annotator annotators score"
        " scores rating ratings quality difficulty number tokens metadata meta info title name names file filename"
        " path probability confidence perplexity rank level country ip header state"
        " redacted toxic moderation",
        # what is not text; no word after it makes it harmless, except for identifiers
        "media": "image images img imgs picture pictures photo photos pixel pixels audio audios speech video videos",
        # what says, as a number, whether or how much a row is learnt
        "switch": "weight weights mask masks masked loss train trainable learn",
        # what one of several answers to choose from is called, beside single letters
        "choice": "option options choice choices opa opb opc opd",
        # what changes, in one format of instructions or another, what is to be learnt
        "meaning": "system sys persona character history context contexts document documents passage passages"
        " knowledge evidence tool tools function functions reasoning thinking think thought thoughts cot rationale"
        " explanation scratchpad rejected weight weights mask masks masked loss train trainable learn message messages"
        " conversation conversations dialog dialogs dialogue dialogues chat turn turns instruction instructions prompt"
        " prompts completion completions question questions query answer answers input inputs output outputs response"
        " responses solution solutions chosen negative negatives text texts content contents shot shots demonstration"
        " demonstrations example examples hint hints critique revision preamble role user assistant human gpt bot",
    }.items()
}
MEDIA_FILE = re.compile(r"\.(png|jpe?g|gif|webp|bmp|tiff?|svg|pdf|wav|mp3|flac|ogg|m4a|mp4|avi|mov|mkv|webm)$", re.I)
ONE_WORD = 64  # characters, at most


@dataclass(frozen=True)
class Place:
    """Where a field stands, for messages: row `number` of `source`, below `prefix` in it.

    `can_ignore` says whether the section of the config has `ignore_fields`.
    """

    source: Source
    number: int
    prefix: str = ""
    can_ignore: bool = True

    def at(self, name: str) -> "Place":
        """The place of a field of what is here."""
        return Place(self.source, self.number, f"{self.prefix}{name}.", self.can_ignore)

    def error(
        self, name: str, expected: str, got: str, remedy: str = "repair the row, or correct the format"
    ) -> RequestError:
        """The error of the field `name`; without one, of the row."""
        field = f", {'fields' if ',' in name else 'field'} {self.prefix}{name}" if name else ""
        return request_error(self.source.key, expected, f"{self.source.path}, row {self.number}{field}: {got}", remedy)

    def ignoring(self, names: str) -> str:
        """How to leave out fields; nothing where that cannot be asked for."""
        return f"leave it out with {self.source.section}.ignore_fields: [{names}]" * self.can_ignore

    def unused(self, lost: Mapping[str, object], expected: str) -> RequestError:
        """The error of fields that would be lost."""
        names, remedy = ", ".join(lost), "remove from the rows what is not to be learnt"
        if ignoring := self.ignoring(names):
            remedy += f", or {ignoring}"
        return self.error(names, expected, f"{next(iter(lost.values()))!r:.80}", remedy)


class Fields:
    """What a row or a turn holds, and which of it has been taken.

    Args:
        row: the fields.
        place: where they stand.
        ignore: names of fields that the config leaves out.

    """

    def __init__(self, row: Row, place: Place, ignore: Collection[str] = ()) -> None:
        self.place = place
        self._all = {name: value for name, value in row.items() if value is not None and name not in ignore}
        self._taken: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def look(self, name: str) -> Any:
        """The field `name`, which is not taken yet."""
        return self._all.get(name)

    def take(self, *names: str) -> Any:
        """The field that goes by one of the `names`, or None. Of several the one that says something.

        Raises:
            RequestError: two of them are there, and differ.

        """
        found = {name: self._all[name] for name in names if name in self._all}
        self._taken |= found
        saying = {name: value for name, value in found.items() if not is_empty(value)} or found
        for first, value in saying.items():
            if other := next((name for name in saying if saying[name] != value), None):
                raise self.place.error(other, f"one of {first} and {other}", "both, which differ")
            return value
        return None

    @property
    def taken(self) -> list[Any]:
        """The values that have been taken."""
        return list(self._taken.values())

    def text(self, *names: str) -> str:
        """The same of a field that has to be there and has to be text."""
        value = self.take(*names)
        if not isinstance(value, str):
            got = f"fields {sorted(self._all)}" if value is None else f"{value!r:.80}"
            raise self.place.error(names[0], f"the field {names[0]!r} with text", got)
        return value

    def rest(self) -> dict[str, Any]:
        """What has not been taken and says something."""
        return {name: value for name, value in self._all.items() if name not in self._taken and not is_empty(value)}

    def check_rest(self, used: Collection[Any], *, only_text: bool = False) -> list[str]:
        """The names of the columns that are not used and may be left out.

        Args:
            used: values that the row's rendering has; a column that repeats one of them is not lost.
            only_text: whether the format is one of plain text, where only what changes its meaning is refused.

        Raises:
            RequestError: a column is not known to be harmless.

        """
        rest = self.rest()
        lost = {
            name: value
            for name, value in rest.items()
            if not _repeats(name, value, used)
            and not (name == "rejected" and "chosen" in self._all)
            and not is_harmless(name, value, only_text=only_text)
        }
        if lost:
            raise self.place.unused(lost, "fields that are used, or that are known to be metadata")
        return list(rest)


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, empty, or made of such values."""
    if isinstance(value, dict):
        return all(is_empty(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_empty(item) for item in value)
    return value is None or value == "" or value == b""


def without_nulls(value: Any) -> Any:
    """The same without the keys whose value is null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def is_metadata(name: str) -> bool:
    """Whether the name of a field says that it tells about the row, and is not part of it."""
    words = _words(name)
    if words[-1] in WORDS["identifier"] or words[0] in WORDS["counter"]:
        return True
    if words[0] in ("original", "orig") and len(words) == 2 and words[1] in WORDS["version"]:
        return True
    return words[-1] in WORDS["metadata"] and not WORDS["media"].intersection(words)


def is_harmless(name: str, value: object, *, only_text: bool = False) -> bool:
    """Whether a field can be left out of what is learnt: metadata, a number or a single word without a meaning."""
    words = set(_words(name))
    if is_metadata(name):
        return True
    if words & WORDS["choice"] or len(name) == 1:
        return only_text
    if words & {"label", "labels"} and isinstance(value, list | dict):
        return True
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return not words & WORDS["media"] and all(is_harmless(name, item, only_text=only_text) for item in value)
    if isinstance(value, int | float):  # of labels only truths mean something, as in sets for KTO
        is_label = "label" in words and value in (0, 1) and not only_text
        return value == 1 or not (words & WORDS["switch"] or is_label)
    if words & (WORDS["meaning"] | WORDS["media"]) or isinstance(value, bytes):
        return False
    if isinstance(value, str):
        is_short = len(value) <= ONE_WORD and not re.search(r"\s", value)
        return not MEDIA_FILE.search(value.strip()) and (only_text or is_short)
    return only_text or not isinstance(value, list | dict)


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z0-9]+", spaced.lower()) or [""]


def _repeats(name: str, value: object, used: Collection[Any]) -> bool:
    """Whether a column says again what is used: a part of it or, as `text` or `prompt`, all of it."""
    texts = {text.strip() for text in _texts(used) if text.strip()}
    said = [text.strip() for text in _texts(value)]
    return bool(said) and (
        texts.issuperset(said)
        or (name in ("text", "prompt") and bool(texts) and all(text in said[0] for text in texts))
    )


def _texts(value: object) -> Iterator[str]:
    """The texts in a structure, without the names of roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)

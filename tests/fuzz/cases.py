"""What a user might hand over by mistake: configs from the schema and broken texts, as hypothesis strategies."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st

from lors_cli.config.methods import complete
from lors_cli.config.reference import json_schema
from lors_cli.search.sweep_file import SweepFile
from tests import pico

Path = tuple[str, ...]
STAGES = ("prune", "align", "train", "recover", "merge", "eval")
HUGE = [10**9, 10**9 + 1, 10**15, 10**30, 2**31, 2**32, 2**63, 2**64, -1, 0, -(10**30), 10**99]
NUMBERS = [1, 2, 3, 7, 16, 32, 100, 1000, 0.5, 1e-4, 1.0, 1.5, -0.0, 1e-320, 1e308, 1e30, float("inf"), float("nan")]
NAMES = [
    "",
    " ",
    "x" * 300,
    "x/" * 3000,
    "a\nb",
    "a\0b",
    "a\tb",
    "\x7f",
    "~nobody-is-called-so/x",
    "~",
    ".",
    "..",
    "/",
    "*",
]
PLACES = ["FIFO", "SOCKET", "/dev/null", "/dev/zero", "DANGLING", "LOOP", "EMPTY", "ROWS", "FOLDER", "MODEL", "MODEL/x"]
TEXTS = [
    "true",
    "null",
    "2:4",
    "5:4",
    "0:0",
    "1e-4",
    "0.5",
    "é😀",
    "\u202e",
    "A" * 5000,
    "a/b",
    "a/b/c",
    "a: b",
    "!x",
    "&a",
]
DEVICES = ["meta", "cuda:99", "xla", "cpu:0", "CPU", "cuda:-1", "cuda:", "mps:1", "hpu", "vulkan", "auto:1"]
WEIRD: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    [1, "a"],
    {"path": None},
    {"": ""},
    {"1": {"2": {"3": 4}}},
]
LIKELY: dict[str, list[Any]] = {
    "boolean": [True, False, 0, 1, "yes"],
    "string": PLACES[-5:],
    "array": [[], ["x"], [1]],
}
ODD = [*HUGE, *NUMBERS, *NAMES, *PLACES, *TEXTS, *DEVICES, *WEIRD]
ANY_ODD = st.sampled_from(ODD)
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)  # the default's alphabet takes seconds to make
TAGS = ["!!binary aGk=", "!!set {x}", "!!timestamp 2026-01-02", "!!python/name:os.system", "!!omap [a: 1]", "!!int x"]
TAGS += ["!!bool x", "!!float ''", "!x y", "!<tag:x> y", "2026-01-02", ".nan", "-.inf", "0x" + "f" * 5000, "9" * 5000]
BROKEN = [
    "\0",
    "\x07",
    "\t",
    "\ufeff",
    "\u2028",
    "- ",
    ": ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "&a ",
    "*a",
    "<<: *a\n",
    "#",
]
BROKEN += [
    "\n---\n",
    "\n...\n",
    "%YAML 3.0\n---\n",
    "|\n",
    ">-\n",
    "\\",
    '"\\ud800"',
    '"\\UFFFFFFFF"',
    "\r",
    "\n\n",
    "!",
    "@",
]


@dataclass(frozen=True)
class Case:
    """A command line of which CONFIG is the file with `content`."""

    arguments: list[str]
    content: bytes

    def __str__(self) -> str:
        return f"lors {' '.join(map(repr, self.arguments))}\n{self.content[:3000]!r}"


def fields(schema: dict[str, Any], root: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each key of a JSON schema, with that of its values."""
    schema = root["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, value in schema.get("properties", {}).items():
        yield (*path, name), value
        yield from fields(value, root, (*path, name))
    for part in schema.get("anyOf", []):
        yield from fields(part, root, path)


SCHEMA = json_schema()
FIELDS = list(fields(SCHEMA, SCHEMA))
SWEEP_SCHEMA = complete(SweepFile).model_json_schema()
SWEEP_FIELDS = list(fields(SWEEP_SCHEMA, SWEEP_SCHEMA))


def base(root: str) -> dict[str, Any]:
    """A config of the whole job that is correct."""
    return pico.config(f"{root}/model", f"{root}/out/run")


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a key: mostly such as the schema allows, at and beyond its bounds."""
    parts = [one for one in [schema, *schema.get("anyOf", [])] if "type" in one or "enum" in one or "const" in one]
    right: list[Any] = []
    for one in parts:
        right += one.get("enum", [one["const"]] if "const" in one else [])
        bounds = [one[key] for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum") if key in one]
        right += [*bounds, *(bound + step for bound in bounds for step in (-1, 1))]
        right += LIKELY.get(one.get("type", ""), [])
    allowed = st.sampled_from(right) if right else ANY_ODD
    return st.one_of(allowed, allowed, allowed, ANY_ODD, ANY_ODD, st.integers(), st.floats(), ANY_TEXT)


@st.composite
def changed(draw: Any, content: dict[str, Any], known: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The content with some keys set, removed, renamed or put elsewhere."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 2, 4]))):
        path, schema = draw(st.sampled_from(known))
        target = content
        for name in path[:-1]:
            inner = target.get(name)
            target[name] = inner if isinstance(inner, dict) else {"path": inner} if isinstance(inner, str) else {}
            target = target[name]
        way = draw(st.sampled_from(["set", "set", "set", "set", "remove", "rename", "wrap", "key"]))
        if way == "set":
            target[path[-1]] = draw(values(schema))
        elif way == "remove":
            target.pop(path[-1], None)
        elif way == "rename":
            target[path[-1][1:] + path[-1][:1]] = target.pop(path[-1], 1)
        elif way == "wrap":
            target[path[-1]] = [target.get(path[-1])]
        else:
            target[draw(st.sampled_from([1, True, None, 1.5, "", "a.b", "\0", "x" * 2000, "é", "<<"]))] = 1
    return content


@st.composite
def texts(draw: Any, content: dict[str, Any]) -> bytes:
    """The content as a YAML text, which may be broken."""
    text = json.dumps(content) if draw(st.booleans()) else yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    for _ in range(draw(st.sampled_from([*[0] * 9, 1, 1, 3]))):
        place = draw(st.integers(0, len(text)))
        way = draw(st.sampled_from(["insert", "insert", "cut", "tag", "bomb", "deep", "swap", "repeat"]))
        if way == "insert":
            text = text[:place] + draw(st.one_of(st.sampled_from(BROKEN), ANY_TEXT)) + text[place:]
        elif way == "cut":
            text = text[:place]
        elif way == "tag":
            text = text.replace(": ", f": {draw(st.sampled_from(TAGS))} #", draw(st.integers(1, 3)))
        elif way == "bomb":
            names = "abcdefghijkl"
            text += "\n" + f"a: &a [{'x,' * 9}]\n"
            text += "".join(f"{n}: &{n} [{','.join([f'*{b}'] * 9)}]\n" for b, n in pairwise(names))
        elif way == "deep":
            text += draw(
                st.sampled_from(["\nx: " + "[" * 900, "\n" + "- " * 400, "\nx: " + '{"a": ' * 80, "\n" + "? " * 99])
            )
        elif way == "swap":
            text = text[place:] + text[:place]
        else:
            text += text
    encoding = draw(st.sampled_from([*["utf-8"] * 30, "utf-16", "utf-8-sig", "latin-1", "utf-32"]))
    raw = text.encode(encoding, "replace")
    if draw(st.integers(0, 30)) == 3:
        place = draw(st.integers(0, len(raw)))
        raw = raw[:place] + draw(st.binary(min_size=1, max_size=4)) + raw[place:]
    return raw


@st.composite
def cases(draw: Any, root: str) -> Case:
    """A command with its file."""
    command = draw(
        st.sampled_from(["run"] * 4 + ["prune", "prune", "eval", *STAGES, "sweep", "sweep", "inspect", "report"])
    )
    plain = base(root)
    if command in ("inspect", "report"):
        name = draw(st.sampled_from([*PLACES, *NAMES, "FOLDER/manifests", "MODEL/config.json"])).replace("\0", "")
        name = name if command == "inspect" or name != "/" else "."  # all of the machine, which may hold many runs
        extra = draw(st.sampled_from([[], ["--format", "nonsense"], ["--output", ""]])) if command == "report" else []
        return Case([command, placed(name, root), *extra], b"")
    if command == "sweep" and draw(st.booleans()):
        arms = {"lors": {"grid": {"train.rank": [2, 4]}}, "sqft": {"set": {"train.method": "sqft"}}}
        plain = draw(changed({"config": plain, "arms": arms, "seeds": [0, 1]}, SWEEP_FIELDS))
    else:
        plain = draw(changed(plain, FIELDS))
    overrides = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1]))):
        path, schema = draw(st.sampled_from(FIELDS))
        value = draw(values(schema))
        text = value if isinstance(value, str) else json.dumps(value)
        overrides.append(f"{'.'.join(path)}={text}".replace("\0", "\\0"))
    content = draw(texts(json.loads(placed(json.dumps(plain, skipkeys=True), root))))
    options = draw(st.sampled_from([[], [], ["--force"]]))
    return Case([command, "CONFIG", *(placed(one, root) for one in overrides), "--dry-run", *options], content)


def placed(text: str, root: str) -> str:
    """The text with the places that `runs.build` makes below `root`."""
    for name in ("FIFO", "SOCKET", "DANGLING", "LOOP", "EMPTY", "ROWS", "FOLDER", "MODEL"):
        text = text.replace(name, f"{root}/{name.lower()}")
    return text

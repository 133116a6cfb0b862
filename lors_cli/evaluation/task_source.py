"""The files of a directory of tasks, read as data: the code that they name is refused, and never imported.

lm-eval would import what ``!function`` names, follow any ``include`` and build what aliases repeat. So where tasks are
not trusted it gets copies of their files instead, which hold what was read and checked here and nothing else.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

from lors_cli import yaml12
from lors_cli.errors import Problem, request_error
from lors_cli.evaluation import task_files, task_rules
from lors_cli.evaluation.task_rules import Function

KEY = "eval.trust_task_code"
TRUST = "if you would run their authors' programs, set eval.trust_task_code: true"
OF_LM_EVAL = Path(lm_eval.tasks.__file__).parent
UNREAD = {"__pycache__", ".ipynb_checkpoints"}  # of lm-eval
# What functions of lm-eval's own tasks may be called by tasks of others: those of modules that import these, and that
# evaluate no text. A few of lm-eval's evaluate what is in their data sets, which they know and others write.
IMPORTED = {"__future__", "ast", "collections", "datasets", "functools", "itertools", "json", "math", "numpy", "random"}
IMPORTED |= {"re", "string", "textwrap", "typing", "unicodedata"}
EVALUATING = {"__builtins__", "__import__", "breakpoint", "compile", "delattr", "eval", "exec", "getattr", "globals"}
EVALUATING |= {"locals", "open", "setattr", "vars"}

# What a group may change of lm-eval's own tasks whatever code they have: nothing that this code reads.
UNREAD_BY_CODE = {"num_fewshot", "task_alias", "metadata"}
OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list"}
Index = dict[str, Any]
_Reached = tuple[Any, frozenset[str]]  # an entry of the index, and the keys that groups change in it


@dataclass
class Foreign:
    """The tasks of a directory.

    Attributes:
        directory: where they are.
        data_dir: where their data files are, if that is another one.
        contents: by their files, with those of the files that they include.
        copies: their files by the copies that lm-eval reads; empty before `write`.

    """

    directory: Path
    data_dir: Path | None
    contents: dict[Path, dict[str, Any]] = field(default_factory=dict)
    copies: dict[Path, Path] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write copies into an empty directory, in the order in which lm-eval reads the files."""
        for number, (path, content) in enumerate(self.contents.items()):
            copy = directory / f"{number:06}.yaml"
            copy.write_text(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8")
            self.copies[copy] = path

    def problems(self, name: str, index: Index) -> Iterator[Problem]:
        """What is more than data in all that a task, a group or a tag of lm-eval's index is made of."""
        seen: set[Path] = set()
        for entry, changed in self._reached(name, index, frozenset(), set()):
            path = self.copies.get(entry.yaml_path)
            if path and path not in seen:
                seen.add(path)
                yield from self._of_file(path)
            elif changed - UNREAD_BY_CODE and entry.yaml_path and OF_LM_EVAL in entry.yaml_path.parents:
                yield from _of_change(name, entry, changed)

    def _reached(self, name: str, index: Index, changed: frozenset[str], seen: set[Any]) -> Iterator[_Reached]:
        entry = index.get(name)
        if entry is None or (name, changed) in seen:
            return
        seen.add((name, changed))
        yield entry, changed
        content = entry.cfg or {}
        if "group" in content:
            yield from self._members(content, index, changed, seen, own=entry.yaml_path not in self.copies)
        elif entry.yaml_path is None:  # a tag
            for member in sorted(entry.tags):
                yield from self._reached(member, index, changed, seen)

    def _members(
        self, group: dict[str, Any], index: Index, changed: frozenset[str], seen: set[Any], *, own: bool
    ) -> Iterator[_Reached]:
        """What a group reaches; `own` is one of lm-eval's, which knows its tasks."""
        changed |= frozenset() if own else group.keys() - OF_GROUPS
        listed = group.get("task")
        for member in listed if isinstance(listed, list) else [listed]:
            if isinstance(member, str):
                yield from self._reached(member, index, changed, seen)
            elif isinstance(member, dict):
                name = member.get("group", member.get("task"))
                if isinstance(name, str) and name in index:
                    keys = frozenset() if own else member.keys() - OF_GROUPS
                    yield from self._reached(name, index, changed | keys, seen)
                else:
                    yield from self._members(member, index, changed, seen, own=own)

    def _of_file(self, path: Path) -> Iterator[Problem]:
        content = self.contents[path]
        for function in (one for one in _functions(content) if not one.known):
            wanted = f"true for the code of others: !function {function} is run by Python"
            yield Problem(KEY, wanted, "false", TRUST, str(function.file), function.line)
        for key, got, rule in task_rules.faults(content):
            yield Problem(f"eval.task_dir: {key}", rule, got, f"change it; or {TRUST}", str(path))
        for part in _parts(content):
            yield from self._of_data(path, part)

    def _of_data(self, path: Path, content: dict[str, Any]) -> Iterator[Problem]:
        """Whether the data files are in the directories that were named, whatever links say."""
        base = self.data_dir or self.directory
        name = content.get("dataset_path")
        if isinstance(name, str) and name not in task_files.LOCAL_FORMATS and (base / name).exists():
            rule = "a data set of the hub, or one of json, csv, parquet and text with its data_files"
            yield Problem(
                "eval.task_dir: dataset_path", rule, f"{base / name}", f"name its files; or {TRUST}", str(path)
            )
        for file in task_files.named(content):
            for there in task_files.matching(base, file):
                if not any(there.resolve().is_relative_to(one.resolve()) for one in (base, self.directory)):
                    wanted, got = f"data files in {base}", f"{there}, which is {there.resolve()}"
                    yield Problem("eval.data_dir", wanted, got, f"copy it there; or {TRUST}", str(path))


def read(directory: Path, data_dir: Path | None) -> Foreign:
    """Read the tasks in a directory.

    Raises:
        RequestError: a file of YAML leaves the directory, or cannot be read.

    """
    found = Foreign(directory, data_dir)
    paths = (path for path in directory.rglob("*.yaml") if not UNREAD & set(path.parts))
    for path in sorted(paths, key=Path.as_posix):
        try:
            content = _content(path, directory, ())
        except (yaml.YAMLError, ValueError, TypeError) as error:
            remedy = f"correct it, or move what is no task out of the directory; or {TRUST}"
            raise request_error("eval.task_dir", "files of YAML", " ".join(str(error).split()), remedy, path) from None
        if {"task", "group", "class"} & content.keys():
            found.contents[path] = content
    return found


def _content(path: Path, directory: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """What a file says, with what it includes; its own keys count for more, as for lm-eval."""
    place = path.resolve()
    if not (place.is_relative_to(directory.resolve()) or place.is_relative_to(OF_LM_EVAL)):
        raise request_error(
            KEY, f"task files in {directory}", f"{path}, which is {place}", f"copy it there; or {TRUST}"
        )
    if not place.is_file():
        raise request_error("eval.task_dir", "task files that are files", path, "remove it")
    if place in including:
        raise ValueError(f"{path} includes itself")
    with place.open(encoding="utf-8") as file:
        loader = _Loader(file.read(yaml12.MOST_CHARACTERS + 1))
    loader.place = place
    try:
        content = loader.get_single_data()
    finally:
        loader.dispose()
    if not isinstance(content, dict):  # no task, as for lm-eval
        return {}
    included = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        part = _content(place.parent / name, directory, (*including, place))
        merged |= {key: value for key, value in part.items() if key != "task_list"}
    return {**merged, **content}


class _Loader(yaml12.Bounded):
    """The YAML of lm-eval, which is of version 1.1; a function stays a name."""

    place: Path

    def construct_function(self, node: yaml.ScalarNode) -> Function:
        """The name of a function; one of lm-eval's that data alone can be given to by its whole name."""
        text = str(self.construct_scalar(node))
        known = _of_lm_eval(text, self.place.parent)
        function = Function(known or text)
        function.known, function.file, function.line = known is not None, self.place, node.start_mark.line + 1
        return function


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write what is shared twice."""
        return True

    def represent_function(self, function: Function) -> yaml.ScalarNode:
        """A function that may be called as lm-eval calls it; another one as the text of its name."""
        return self.represent_scalar("!function" if function.known else "tag:yaml.org,2002:str", str(function))


_Loader.add_constructor("!function", _Loader.construct_function)
_Dumper.add_representer(Function, _Dumper.represent_function)


def _of_lm_eval(text: str, directory: Path) -> str | None:
    """The whole name of a function of lm-eval's own tasks that is as `text` in a file of `directory`; otherwise None.

    As for lm-eval, a module beside the file comes first.
    """
    module, _, name = text.rpartition(".")
    parts = module.split(".")
    beside = directory.joinpath(*parts).with_suffix(".py")
    if beside.exists():
        path = beside.resolve()
    elif parts[:2] == ["lm_eval", "tasks"]:
        path = OF_LM_EVAL.joinpath(*parts[2:]).with_suffix(".py").resolve()
    else:
        return None
    if not (path.is_relative_to(OF_LM_EVAL) and path.is_file() and name in _defined(path)):
        return None
    return ".".join(("lm_eval.tasks", *path.relative_to(OF_LM_EVAL).with_suffix("").parts, name))


@lru_cache
def _defined(path: Path) -> frozenset[str]:
    """The functions that a module of lm-eval's defines; none if it might evaluate the text of its data."""
    tree = ast.parse(path.read_bytes())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {"." if node.level else str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    if names & EVALUATING or {module.partition(".")[0] for module in modules} - IMPORTED:
        return frozenset()
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def _functions(content: Any) -> Iterator[Function]:
    """The functions anywhere in a content."""
    if isinstance(content, Function):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _functions(key)
            yield from _functions(value)
    elif isinstance(content, list | tuple | set):
        for value in content:
            yield from _functions(value)


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    """A content and the tasks that are written within it, as those of a group can be."""
    if isinstance(content, dict):
        yield content
        listed = content.get("task")
        for one in listed if isinstance(listed, list) else []:
            yield from _parts(one)


def _of_change(group: str, entry: Any, changed: frozenset[str]) -> Iterator[Problem]:
    """Whether the code of a task of lm-eval's may be given what a group changes in it."""
    content = _content(entry.yaml_path, OF_LM_EVAL, ())
    codes = [str(one) for one in _functions(content) if not one.known]
    if content.get("unsafe_code") is not True and codes:  # what is unsafe needs eval.allow_code_execution in any case
        keys = ", ".join(sorted(changed - UNREAD_BY_CODE))
        wanted = f"true to give {codes[0]}, code of lm-eval's task {entry.name}, what {group} changes: {keys}"
        yield Problem(KEY, wanted, "false", TRUST)

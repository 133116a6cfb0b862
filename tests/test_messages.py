"""What messages and helps name exists: commands, their options, keys of configs and extras."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

from lors_cli.cli import app
from lors_cli.config.methods import complete, section_of
from lors_cli.config.problems import paths
from lors_cli.config.schema import Config
from lors_cli.run.layout import STAGES
from lors_cli.search.sweep_file import SweepFile

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
OPTIONS = {
    flag for command in COMMANDS.values() for one in command.params for flag in one.opts + one.secondary_opts
} | {
    "--version",
    "--help",
}
OTHERS = {
    "--no-deps",
    "--wheel-dir",
    "--disable-pip-version-check",
    "--only-binary",
    "--mixed_precision",
    "--config_file",
    "--dynamo_backend",
    "--cpu",
    "--merge",
    "--local-dir",
}  # of pip, accelerate, llama-gguf-split and hf
KEYS = set(paths(complete(Config)))
FILES = ("jsonl", "json", "yaml", "md", "py", "txt", "safetensors", "pt", "bin", "html")


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the package that is no docstring, with where it is; what an f-string fills in is an underscore."""
    for path in sorted((ROOT / "lors_cli").rglob("*.py")):
        tree = ast.parse(path.read_text())
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield where, "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents | inner:
                yield where, node.value


TEXTS = list(texts())


def test_commands_and_their_arguments_exist() -> None:
    seen = 0
    for where, text in TEXTS:
        for words in re.findall(r"`lors ([a-z]+[^`]*)`", text):
            name, *arguments = words.split()
            assert name in COMMANDS, f"{where}: lors {words}"
            wanted = [one for one in COMMANDS[name].params if one.param_type_name == "argument" and one.required]
            given = [word for word in arguments if not word.startswith("-")]
            assert not given or len(given) >= len(wanted), f"{where}: lors {words} lacks an argument"
            seen += 1
    assert seen > 10


def test_options_exist() -> None:
    seen = {flag: where for where, text in TEXTS for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)}
    assert len(seen) > 10
    assert not {flag: where for flag, where in seen.items() if flag not in OPTIONS | OTHERS}


def test_keys_exist() -> None:
    """Dotted keys; of those whose section an f-string fills in, the last part."""
    seen, wrong = 0, []
    last = {key.rpartition(".")[2] for key in KEYS}
    for where, text in TEXTS:
        for key in re.findall(rf"(?<![\w./-])((?:{'|'.join(STAGES)}|_)\.[a-z_]{{3,}}(?:\.[a-z_]+)*)(?![\w(/*])", text):
            if key.rpartition(".")[2] in FILES or " " not in text:
                continue
            seen += 1
            known = key.rpartition(".")[2] in last if key.startswith("_") else key in KEYS
            if not known:
                wrong.append(f"{where}: {key}")
    assert seen > 60
    assert not wrong


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    asked = [found for _, text in TEXTS for found in re.findall(r"lors[-_]cli\[(\w+)\]", text)]
    assert set(asked) <= set(extras)


@pytest.mark.parametrize("model", [Config, SweepFile])
def test_null_can_only_mean_the_default(model: type[BaseModel]) -> None:
    """Else null, which takes a key back, could not be told from the value null."""

    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert type(None) not in get_args(field.annotation) or field.default is None, f"{section.__name__}.{name}"
            if inner := section_of(field):
                check(inner)

    check(complete(model))

"""The files that a sweep ends in: results.json, results.md with the table, and best.yaml."""

from pathlib import Path
from typing import Any

from lors_cli.artifacts import files
from lors_cli.config import recipes
from lors_cli.config.dump import as_yaml
from lors_cli.config.schema import Config
from lors_cli.run import environment

BEST = "best.yaml"


def write(directory: Path, content: dict[str, Any], parts: list[str]) -> str:
    """Write results.json and, of all parts that are not empty, results.md; its text, to be printed."""
    machine = {"versions": environment.versions(), "hardware": environment.hardware()}
    files.write_json(directory / "results.json", content | machine)
    shown = "\n\n".join(part for part in parts if part)
    files.write_text(directory / "results.md", shown + "\n")
    return shown


def failed(reasons: dict[str, str]) -> str:
    """What failed, by name, and why."""
    return listed("Failed:", reasons)


def listed(title: str, reasons: dict[str, str]) -> str:
    """Names with reasons below a title, those of the same reason together; nothing of none."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(one_line(reason), []).append(name)
    lines = [f"- {', '.join(alike)}: {reason}" for reason, alike in names.items()]
    return "\n".join([title, *lines]) if lines else ""


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def best_yaml(config: Config, path: Path, words: str) -> str:
    """The config as a YAML 1.2 file that loads back to the same, headed by the command that runs it."""
    content = config.model_dump(mode="json")
    if config.prune:  # it takes an option that its method does not have for a mistake, whatever the value
        content["prune"] = recipes.written(config)["prune"]
    return f"# lors run {path}\n# The best run of a sweep: {words}.\n{as_yaml(content)}"

"""The configs of a sweep file: an experiment, with what the file and the command line change of it."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from lors_cli.artifacts import files
from lors_cli.config.load import configured, overridden, override, read
from lors_cli.config.problems import CLI
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, request_error
from lors_cli.run.layout import STAGES
from lors_cli.search import located, points, sweep_file
from lors_cli.search.sweep_file import LENGTHS, Settings

SELECT, JUDGE = "select", "judge"  # the halves of the held-out text


class Configs:
    """What the sweep file at `path` makes of its config; `arguments` override either from the command line.

    Raises:
        RequestError: with every problem of the file, or of the arguments.

    """

    def __init__(self, path: Path, arguments: list[str]) -> None:
        self.path = path
        self.file, self.overrides = sweep_file.load(path, arguments)
        self._check_overrides()
        self.models = self._located("models", arguments)
        self.files = self._located("files", arguments)
        if (held_out := self.file.choose.held_out) and held_out.path in self.files:
            there = held_out.model_copy(update={"path": self.files[held_out.path]})
            choose = self.file.choose.model_copy(update={"held_out": there})
            self.file = self.file.model_copy(update={"choose": choose})
        self.output = self._output()

    def _located(self, section: str, arguments: list[str]) -> dict[str, str]:
        """The paths of a section of the file by the names that the configs have."""
        paths: dict[str, str] = getattr(self.file, section)
        if not paths:
            return {}
        given = any(overridden(text).partition(".")[0] == section for text in arguments)
        return located.by_id(paths, self.known(located.SECTIONS[section]), section, CLI if given else str(self.path))

    def of(self, start: str, changes: Settings) -> Config:
        """The config of the start's file with everything that changes it, in this order."""
        path, raw = self._content(start)
        halves: Settings = {}
        if self.file.choose.held_out:
            halves["eval.perplexity.dataset"] = self.half(JUDGE)
            if self.file.choose.by == "held_out_loss":
                halves["train.eval_dataset"] = self.half(SELECT)
        ours = {**self.file.starts[start].set, **changes} if start else changes
        texts = [*_texts(self.file.set), *_texts(halves), *self.overrides, *_texts(ours)]
        origins = {
            **dict.fromkeys([*self.file.set, *ours], str(self.path)),
            **dict.fromkeys(_keys(self.overrides), CLI),
        }
        return self._changed(raw, texts, path, origins)

    def evaluation(self, config: Config, name: str, settings: Settings) -> Config:
        """The evaluation of a config with other settings, in a directory below that of the config."""
        raw = config.model_dump(mode="json", exclude={*STAGES, "recipe"} - {"eval"})
        texts = _texts({**settings, "output_dir": f"{config.output_dir}/{name}"})
        return self._changed(raw, texts, self.path, {})

    def half(self, name: str) -> Settings:
        """One half of the held-out text; before it is written, all of it."""
        path, held_out = self.output / f"{name}.jsonl", self.file.choose.held_out
        return {"path": str(path)} if path.is_file() or not held_out else held_out.model_dump(exclude_none=True)

    def split_held_out(self) -> None:
        """Write the two halves of the held-out text."""
        held_out = self.file.choose.held_out
        rows = list(held_out.source("choose.held_out").texts()) if held_out else []
        for name, part in ((SELECT, rows[::2]), (JUDGE, rows[1::2])) if held_out else ():
            path, text = self.output / f"{name}.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in part)
            if not path.is_file() or path.read_text() != text:
                self.output.mkdir(parents=True, exist_ok=True)
                files.write_text(path, text)

    def _content(self, start: str) -> tuple[Path, Settings]:
        """The file that a start's config comes from, and its content."""
        config = (self.file.starts[start].config if start else None) or self.file.config
        if isinstance(config, str):
            path = self.path.parent / os.path.expanduser(config)
            return path, read(path)
        return self.path, deepcopy(config or {})

    def known(self, names: Callable[[Settings], set[str]]) -> set[str]:
        """What all configs of the sweep have of such `names`, also those of starts and arms that are left out."""
        arms, held_out = self.file.arms.values(), self.file.choose.held_out
        varied: list[Settings] = [*(arm.set for arm in arms), *self.file.evaluations.values()]
        for grid in (self.file.every, *(arm.grid for arm in arms)):
            varied += [{key: value} for key, values in grid.items() for value in values]
        if held_out:
            varied.append({"train.eval_dataset": held_out.model_dump(exclude_none=True)})
        known: set[str] = set()
        for start in self.file.starts or [""]:
            own = _texts(self.file.starts[start].set) if start else []
            for settings in varied:
                raw = self._content(start)[1]
                for text in [*_texts(self.file.set), *self.overrides, *own, *_texts(settings)]:
                    override(raw, text)
                known |= names(raw)
        return known

    def _changed(self, raw: Settings, texts: list[str], path: Path, origins: dict[str, str]) -> Config:
        for text in texts:
            override(raw, text)
        located.locate(raw, self.models, self.files)
        return configured(raw, path, origins)

    def _output(self) -> Path:
        given = self.file.output_dir or self._content("")[1].get("output_dir")
        if not isinstance(given, str):
            raise request_error("output_dir", "a directory", given, "add output_dir: to the sweep file", self.path)
        return Path(os.path.expanduser(given))

    def _check_overrides(self) -> None:
        """Refuse arguments that would be without effect, and axes."""
        ours = self.file.keys | {*(LENGTHS if self.file.budget else ()), *(["seed"] if self.file.seeds else [])}
        problems = [
            Problem(
                key,
                "a key that the sweep file leaves to its config",
                "one that it sets itself",
                "change it in the sweep file",
                CLI,
            )
            for key in _keys(self.overrides)
            if key in ours
        ]
        problems += [
            Problem(text.partition("=")[0], "a single value", text, "put an axis into grid: or every:", CLI)
            for text in self.overrides
            if len(points.split(text.partition("=")[2])) > 1
        ]
        if problems:
            raise RequestError(*problems)


def _texts(settings: Settings) -> list[str]:
    """Settings as overrides; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _keys(texts: list[str]) -> list[str]:
    return [text.partition("=")[0] for text in texts]

"""When two requests are the same: by the settings that decide a result, and by the digests of what it is made from."""

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from lors_cli.config.fields import Section
from lors_cli.config.schema import Config
from lors_cli.errors import Problem
from lors_cli.run import manifest
from lors_cli.run.manifest import Request

# What changes no result: where inputs come from (they count by their content), where things are kept, how a run is
# watched, what only decides whether it can go on, and how a sum is split up. A run may go on on more processes or with
# smaller micro-batches.
NOT_OF_THE_RESULT = {
    *("input", "mask", "states", "merge_cache", "report_to", "logging_steps", "save_steps", "keep_checkpoints"),
    *("repeat", "parallel", "micro_batch_size", "gradient_checkpointing", "chunked_loss"),
}
# The same of an evaluation: how it is measured.
NOT_OF_AN_EVALUATION = {"batch_size", "offline", "allow_code_execution", "trust_task_code"}
# Settings that are paths, and the settings that hold what is there: it counts, and not where it lies. A teacher counts
# among the inputs.
BY_CONTENT: dict[tuple[str, ...], tuple[str, ...]] = {
    ("dataset", "path"): ("data", "train.dataset"),
    ("eval_dataset", "path"): ("data", "train.eval_dataset"),
    ("calibration", "dataset", "path"): ("calibration_source",),
    ("perplexity", "dataset", "path"): ("perplexity_source",),
    ("rank_search", "dataset", "path"): ("rank_search_source",),
    ("task_dir",): ("task_files",),
    ("data_dir",): ("task_files",),
    ("distill", "teacher"): (),
}
LENGTHS = ("max_steps", "max_tokens", "epochs")  # of a training
GENERAL = ("seed", "dtype")  # settings of the whole config; null in a section means these
EXACT_BASES = ("dense", "packed")  # forms of the frozen weights that are the same numbers


def settings(config: Config, section: Section) -> dict[str, Any]:
    """The settings that determine a stage's result, apart from its inputs."""
    decisive = section.model_dump(mode="json", exclude=NOT_OF_THE_RESULT)
    if section is config.eval:
        decisive = {key: value for key, value in decisive.items() if key not in NOT_OF_AN_EVALUATION}
    if decisive.get("base") in EXACT_BASES:
        del decisive["base"]
    general = {key: getattr(config, key) for key in GENERAL}
    return {**general, **{key: value for key, value in decisive.items() if value is not None or key not in general}}


def inherited(recorded: Request, config: dict[str, Any]) -> Request:
    """A recorded request with the values of its `config` where older versions kept a section's null instead."""
    meant = {key: config.get(key) for key in GENERAL if key in recorded.settings and recorded.settings[key] is None}
    return recorded.model_copy(update={"settings": {**recorded.settings, **meant}})


def completed(recorded: Request, now: dict[str, Any], section: BaseModel | None) -> Request:
    """A recorded request as it would be recorded `now`, where that is the same.

    It has the defaults of those settings that were no keys yet, in the section and in those below it: another method
    that is registered since brings its options as keys, and a result of the others is as good as before. And it has
    the paths of `now` to what counts by its content.
    """
    return recorded.model_copy(update={"settings": _at_places_of(now, _with_defaults(recorded.settings, now, section))})


def _with_defaults(recorded: dict[str, Any], now: dict[str, Any], section: BaseModel | None) -> dict[str, Any]:
    """Recorded settings with the defaults of the keys that a section and those in it have `now`."""
    fields = type(section).model_fields if section else {}
    complete = {name: fields[name].default for name in now.keys() & fields.keys() - recorded.keys()} | recorded
    for name in fields.keys() & now.keys():
        inner, held, held_now = getattr(section, name), complete[name], now[name]
        if isinstance(inner, BaseModel) and isinstance(held, dict) and isinstance(held_now, dict):
            complete[name] = _with_defaults(held, held_now, inner)
    return complete


def _at_places_of(now: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """The settings that were `recorded`, with the paths of `now` where these are to the same content."""
    moved = copy.deepcopy(recorded)
    for path, content in BY_CONTENT.items():
        *section, name = path
        held, held_now = (_at(settings, section) for settings in (moved, now))
        known, known_now = (_at(settings, content) if content else held for settings in (recorded, now))
        if not len(held) == len(held_now) == len(known) == len(known_now):
            continue
        for one, one_now, fact, fact_now in zip(held, held_now, known, known_now, strict=True):
            same = not content or (fact and fact == fact_now)
            if same and isinstance(one, dict) and isinstance(one_now, dict) and one.get(name) and one_now.get(name):
                one[name] = one_now[name]
    return moved


def _at(settings: Any, place: Sequence[str]) -> list[Any]:
    """What nested settings have at a place, which they may have several times: in each entry of a list."""
    found = [settings]
    for name in place:
        found = [one.get(name) if isinstance(one, dict) else None for one in _each(found)]
    return _each(found)


def _each(found: list[Any]) -> list[Any]:
    return [entry for one in found for entry in (one if isinstance(one, list) else [one])]


def differences(stage: str, old: dict[str, Any], new: dict[str, Any], made: str, further: str = "") -> list[Problem]:
    """What differs between the `old` request and the `new` one.

    `made` says what came of the old one, and `further` how it is trained further, where another length may mean that.
    """
    again = "--force makes it again; another output_dir keeps both"
    before, now = manifest.flat(old), manifest.flat(new)
    return [
        Problem(
            f"{stage}: {key.removeprefix('settings.')}",
            f"{now.get(key)!r}, as asked now",
            f"{before.get(key)!r}, with which {made}",
            further if further and key.removeprefix("settings.") in LENGTHS else again,
        )
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]

"""When two requests are the same: by the settings that decide a result, and by the digests of what it is made from."""

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
NOT_OF_AN_EVALUATION = {"batch_size", "offline", "allow_code_execution"}
EXACT_BASES = ("dense", "packed")  # forms of the frozen weights that are the same numbers


def settings(config: Config, section: Section) -> dict[str, Any]:
    """The settings that determine a stage's result, apart from its inputs."""
    decisive = section.model_dump(mode="json", exclude=NOT_OF_THE_RESULT)
    if section is config.eval:
        decisive = {key: value for key, value in decisive.items() if key not in NOT_OF_AN_EVALUATION}
    if decisive.get("base") in EXACT_BASES:
        del decisive["base"]
    return {"seed": config.seed, "dtype": config.dtype, **decisive}


def completed(recorded: Request, now: dict[str, Any], section: BaseModel | None) -> Request:
    """A recorded request with the defaults of those settings of `now` that were no keys yet when it was recorded.

    Another method that is registered since brings its options as keys; a result of the others is as good as before.
    """
    fields = type(section).model_fields if section else {}
    new = {name: fields[name].default for name in now.keys() & fields.keys() - recorded.settings.keys()}
    return recorded.model_copy(update={"settings": {**new, **recorded.settings}})


def differences(stage: str, old: dict[str, Any], new: dict[str, Any], made: str) -> list[Problem]:
    """What differs between the `old` request and the `new` one; `made` says what came of the old one."""
    before, now = manifest.flat(old), manifest.flat(new)
    return [
        Problem(
            f"{stage}: {key.removeprefix('settings.')}",
            f"{before.get(key)!r}, with which {made}",
            repr(now.get(key)),
            "--force makes it again; another output_dir keeps both",
        )
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]

"""The data sets in a model card: what each was for, and what identifies its rows."""

from pathlib import Path
from typing import Any

from lors_cli.run.manifest import Manifest


def _used(step: Manifest) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The data sets of a step: what for, as the config names them, and what identifies their rows."""
    settings = step.settings
    if settings.get("calibration_source"):
        return [("calibration", settings["calibration"]["dataset"], settings["calibration_source"])]
    # an alignment is recorded under the keys of a training
    named = {"train.dataset": "training", "train.eval_dataset": "held-out loss"}
    if step.stage == "align":
        named = {"train.dataset": "alignment", "train.eval_dataset": "held-out loss of the alignment"}
    used = []
    for key, identities in settings.get("data", {}).items():
        if key in named:
            asked = settings[key.partition(".")[2]]
            several = isinstance(asked, list)  # a mixture
            pairs = zip(asked if several else [asked], identities if several else [identities], strict=True)
            used += [(named[key], one, identity) for one, identity in pairs]
    return used


def lines(steps: list[Manifest]) -> str:
    """A line for each data set, empty if there are none."""
    said = []
    for step in steps:
        for purpose, asked, identity in _used(step):
            name = asked["path"] if "path" in identity else Path(asked["path"]).name
            keys = ("name", "split", "revision", "data_files", "limit", "weight")
            facts = [f"{k} {asked[k]}" for k in keys if asked.get(k)]
            facts += [f"digest `{identity['digest']}`"] if "digest" in identity else []
            if purpose == "calibration":
                windows, tokens = step.settings["calibration"], step.settings["calibration_tokens"]
                facts += [f"{windows['samples']} x {windows['sequence_length']} tokens, digest of these `{tokens}`"]
            said.append(f"* {purpose}: {', '.join([name, *facts])}")
    return "\n".join(dict.fromkeys(said))  # stages may share a text


def hub_ids(steps: list[Manifest]) -> list[str]:
    """The hub ids among the data sets."""
    identities = [identity for step in steps for _, _, identity in _used(step)]
    return list(dict.fromkeys(one["path"] for one in identities if "path" in one and "digest" not in one))

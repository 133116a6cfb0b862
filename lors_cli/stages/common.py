"""What several stages need: a section or an error, an adapter with its method, calibration text, tables of sparsity."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import console, processes
from lors_cli.config.fields import Section
from lors_cli.config.prune import Calibration
from lors_cli.config.schema import Config, missing
from lors_cli.data.calibration import calibration_windows
from lors_cli.errors import request_error
from lors_cli.models import load
from lors_cli.run import manifest

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Section)


def section(config: Config, name: str, value: T | None) -> T:
    """The section of a stage.

    Raises:
        RequestError: the config has none.

    """
    if value is None:
        raise missing(name)
    return value


def check_row(key: str, name: str, mistake: str | None) -> None:
    """Refuse what is registered under a `name` with a mistake.

    Raises:
        RequestError: there is one.

    """
    if mistake:
        remedy = "correct the row that registers it; docs/add-a-method.md shows one"
        raise request_error(key, f"a correct row for {name}", mistake, remedy)


def calibration_tokens(config: Config, calibration: Calibration, directory: Path, skeleton: PreTrainedModel) -> Tensor:
    """The windows of prune.calibration in the tokens of the model in `directory`, (windows, length).

    Raises:
        RequestError: the text is too short, or there are fewer windows than processes.

    """
    load.warn_of_length(skeleton, calibration.sequence_length, "prune.calibration.sequence_length")
    tokenizer = load.load_tokenizer(directory, skeleton, trust_remote_code=config.trust_remote_code)
    tokens = calibration_windows(
        calibration.dataset.source("prune.calibration.dataset"),
        calibration.dataset.format,
        tokenizer,
        calibration.sequence_length,
        calibration.samples,
        sampling=calibration.sampling,
        seed=config.seed,
    )
    if len(tokens) < processes.count():
        wanted = f"at least {processes.count()}, a window for every process"
        raise request_error("prune.calibration.samples", wanted, len(tokens), "start fewer processes")
    return tokens


def block_table(modules: dict[str, dict[str, Any]]) -> str:
    """The sparsity of every linear: a row for each block, a column for each place in it."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for name, facts in modules.items():
        block = next((part for part in name.split(".") if part.isdigit()), "")
        rows[block][name.rsplit(".", 1)[-1]] = f"{facts['sparsity']:.4f}"
    places = list(dict.fromkeys(place for cells in rows.values() for place in cells))
    return console.markdown_table(
        ["block", *places], [[block, *(cells.get(p, "") for p in places)] for block, cells in rows.items()]
    )


def log_modules(measured: dict[str, Any]) -> None:
    """Say what the linears hold, those of the same place in their blocks together."""
    for name, facts in measured["modules"].items():
        log.debug("%s: sparsity %.6f, %s", name, facts["sparsity"], facts["pattern"])
    for place, linears in manifest.by_place(measured["modules"]).items():
        values, kinds = [facts["sparsity"] for facts in linears], "/".join(sorted({f["pattern"] for f in linears}))
        log.info("  %-12s %3d x sparsity %.4f to %.4f, %s", place, len(values), min(values), max(values), kinds)
    log.info("  all linears of the blocks: sparsity %.4f, %s", measured["sparsity"], measured["pattern"])

"""What several stages need: a section or an error, an adapter with its method, calibration text, tables of sparsity."""

import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import console, processes
from lors_cli.artifacts import companions, digest, quantized_files
from lors_cli.config.evaluation import Perplexity
from lors_cli.config.fields import Section
from lors_cli.config.prune import Calibration
from lors_cli.config.schema import Config, missing
from lors_cli.data import once
from lors_cli.data.calibration import calibration_windows
from lors_cli.errors import removal, request_error
from lors_cli.evaluation.judged import Rows, Text
from lors_cli.models import load
from lors_cli.quantization.grid import Grid
from lors_cli.run import manifest, request
from lors_cli.run.graph import Input

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


def judged(asked: Perplexity, key: str) -> Text | Rows:
    """What a loss is measured on, as the section `key` asks for it."""
    source, length, most = asked.dataset.source(f"{key}.dataset"), asked.sequence_length, asked.samples
    if asked.dataset.format == "text":
        return Text(source, length, most)
    seed = asked.sampling_seed if asked.sampling == "random" else None
    return Rows(source, asked.dataset.format, length, most, seed, asked.prompt_tokens, tuple(asked.ignore_fields))


def calibration_tokens(
    config: Config, calibration: Calibration, directory: Path, skeleton: PreTrainedModel, stage: str = "prune"
) -> Tensor:
    """The windows of a stage's calibration in the tokens of the model in `directory`, (windows, length).

    Raises:
        RequestError: the text is too short, or there are fewer windows than processes.

    """
    load.warn_of_length(skeleton, calibration.sequence_length, f"{stage}.calibration.sequence_length")
    tokenizer = load.load_tokenizer(directory, skeleton, trust_remote_code=config.trust_remote_code)
    source, seed = calibration.dataset.source(f"{stage}.calibration.dataset"), config.seed
    tokens = once.read(
        ("windows", source, directory, calibration, seed),
        lambda: calibration_windows(
            source,
            calibration.dataset.format,
            tokenizer,
            calibration.sequence_length,
            calibration.samples,
            sampling=calibration.sampling,
            seed=seed,
        ),
    )
    if len(tokens) < processes.count():
        wanted = f"at least {processes.count()}, a window for every process"
        raise request_error(f"{stage}.calibration.samples", wanted, len(tokens), "start fewer processes")
    return tokens


@dataclass(frozen=True)
class Calibrated:
    """The windows that a stage calibrates on, in tokens (windows, length), and their digest; None without any."""

    calibration: Calibration | None
    tokens: Tensor | None = None
    token_digest: str | None = None

    @classmethod
    def of(
        cls, config: Config, calibration: Calibration | None, directory: Path, skeleton: PreTrainedModel, stage: str
    ) -> "Calibrated":
        """Read the windows; arguments and errors as of `calibration_tokens`."""
        if calibration is None:
            return cls(None)
        tokens = calibration_tokens(config, calibration, directory, skeleton, stage)
        return cls(calibration, tokens, digest.of_value(tokens.tolist()))

    @property
    def shape(self) -> tuple[int, int] | None:
        """How many windows of how many tokens."""
        return None if self.tokens is None else (len(self.tokens), self.tokens.shape[1])

    def settings(self, config: Config, section: Section) -> dict[str, Any]:
        """The settings that determine the stage's result."""
        return {
            **request.settings(config, section),
            "calibration_source": self.calibration.dataset.source("").identity() if self.calibration else None,
            "calibration_tokens": self.token_digest,
        }

    def facts(self, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What a manifest says of it; the facts of the linears that were `made` give up their "tokens"."""
        if self.shape is None:
            return {}
        (count, length), each = self.shape, {name: fact.pop("tokens") for name, fact in made.items()}
        facts = {"windows": count, "tokens": count * length, "token_digest": self.token_digest}
        return {"calibration": {**facts, "tokens_per_linear": each}}


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


def check_groups(grid: Grid, targets: dict[str, nn.Linear], key: str) -> None:
    """Check that the groups of a `grid` fit all `targets`.

    Raises:
        RequestError: its groups do not divide the inputs of one.

    """
    for name, linear in targets.items():
        if linear.in_features % grid.group_size:
            shared = math.gcd(*(one.in_features for one in targets.values()))
            fits = max(size for size in range(1, grid.group_size) if shared % size == 0)
            raise request_error(
                f"{key}.group_size",
                f"a number that divides the inputs of every linear ({name} has {linear.in_features})",
                grid.group_size,
                f"write group_size: {fits}",
            )


def write_config(
    origin: Path,
    target: Path,
    model: PreTrainedModel,
    grid: Grid | None,
    quantized: list[str],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Give a directory of weights its config, and what else belongs to the model in `origin`.

    The config says if the linears that are called `quantized` are so, on a `grid`.
    """
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    said = quantized_files.section(grid, every - set(quantized)) if grid else None
    load.copy_config(origin, target, model, trust_remote_code=trust_remote_code, quantization=said)
    companions.copy(origin, target, trust_remote_code=trust_remote_code)


def check_plain(given: Input, stage: str) -> None:
    """Refuse a model that is quantised already, as the input of a `stage` that would round again or from codes.

    Raises:
        RequestError: it is.

    """
    if not given.grid:
        return
    made = manifest.read(given.path) if given.maker is None else None
    before = made.input_paths.get("pruned") if made and made.stage == "quantize" else None
    remedy = f"name {before}, of which it was made" if before else "name the model before quantisation"
    if given.maker == "prune":
        remedy = removal("prune.quantize", stage)
    got = f"{given.path}, {given.grid.bits} bits a weight in groups of {given.grid.group_size}"
    expected = "a model that is not quantised yet, whose weights are plain floats"
    raise request_error(f"{stage}.input", expected, got, remedy)

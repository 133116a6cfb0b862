"""What several stages need: a section or an error, where inputs come from, the settings that determine a result."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import console, processes, pruning
from lors_cli.artifacts import tensors
from lors_cli.config.fields import Section
from lors_cli.config.prune import Calibration
from lors_cli.config.schema import Config
from lors_cli.data.calibration import calibration_windows
from lors_cli.errors import LorsError, request_error
from lors_cli.models import load, measure, source, structure
from lors_cli.run import manifest

log = logging.getLogger(__name__)

# Where inputs come from (they count by their content), where things are kept, how a run is watched, what only decides
# whether it can go on, and how a sum is split up: a run may go on on more processes or with smaller micro-batches.
NOT_OF_THE_RESULT = {
    *("input", "mask", "states", "merge_cache", "report_to", "logging_steps", "save_steps", "keep_checkpoints"),
    *("repeat", "parallel", "micro_batch_size", "gradient_checkpointing", "chunked_loss"),
}
EXACT_BASES = ("dense", "packed")  # forms of the frozen weights that are the same numbers

T = TypeVar("T", bound=Section)


def section(config: Config, name: str, found: T | None) -> T:
    """The section of a stage.

    Raises:
        RequestError: the config has none.

    """
    if found is None:
        raise request_error(name, f"a {name}: section", "none", f"add it, or run another stage than {name}")
    return found


def settings(config: Config, part: Section) -> dict[str, Any]:
    """The settings that determine a stage's result, apart from its inputs."""
    found = part.model_dump(mode="json", exclude=NOT_OF_THE_RESULT)
    if found.get("base") in EXACT_BASES:
        del found["base"]
    return {"seed": config.seed, "dtype": config.dtype, **found}


def pruned_directory(config: Config, name: str, earlier: list[str]) -> Path:
    """The pruned model that a stage reads: its own input, else train's, else what align or prune wrote or will write.

    Raises:
        RequestError: it is missing and no stage of this run makes it.

    """
    if own := getattr(getattr(config, name), "input", None):  # of a stage that is not there, and eval, there is none
        return source.resolve(own, f"{name}.input")
    if name in ("recover", "merge") and config.train and config.train.input:
        return source.resolve(config.train.input, "train.input")
    if config.align and name in ("train", "recover", "merge"):
        return previous(config, "aligned", "align", f"{name}.input", earlier)
    if name == "eval" and (found := (config.align or config.train)) and found.input:
        return source.resolve(found.input, f"{'align' if config.align else 'train'}.input")
    return previous(config, "pruned", "prune", "eval.models" if name == "eval" else f"{name}.input", earlier)


def previous(config: Config, directory: str, stage: str, key: str, earlier: list[str]) -> Path:
    """The finished output of an earlier stage, or where a stage of this run will put it.

    Raises:
        RequestError: neither.

    """
    path = Path(config.output_dir) / directory
    if stage not in earlier and not (path / manifest.NAME).is_file():
        state = "something that lors did not make" if path.exists() else "which does not exist"
        raise request_error(
            key, f"the output of `lors {stage}`", f"{path}, {state}", f"run `lors {stage}` first, or set {key}"
        )
    return path


def structure_directory(config: Config, directory: Path, earlier: list[str]) -> Path:
    """Where to read shapes and tokenizer of `directory` from; for what this run makes, the model that it starts from.

    What an earlier run left under that name may be another model, about to be replaced.
    """
    output = Path(config.output_dir)
    if directory == output / "merged" and "merge" in earlier:
        directory = pruned_directory(config, "merge", earlier)
    if directory == output / "aligned" and "align" in earlier:
        directory = pruned_directory(config, "align", earlier)
    if directory == output / "pruned" and "prune" in earlier:
        return source.resolve((config.prune.input if config.prune else None) or config.model)
    return directory


def calibration_tokens(config: Config, calibration: Calibration, directory: Path, skeleton: PreTrainedModel) -> Tensor:
    """The windows of prune.calibration in the tokens of the model in `directory`, (windows, length).

    Raises:
        RequestError: the text is too short, or there are fewer windows than processes.

    """
    load.warn_of_length(skeleton, calibration.sequence_length, "prune.calibration.sequence_length")
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
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


def is_structured(config: Config, pruned: Path, earlier: list[str]) -> bool:
    """Whether the pruned model is smaller than the original, or will be, if a stage of this run makes it."""
    if pruned == Path(config.output_dir) / "aligned" and "align" in earlier:
        pruned = pruned_directory(config, "align", earlier)
    if "prune" in earlier and config.prune and pruned == Path(config.output_dir) / "pruned":
        return pruning.METHODS[config.prune.method].structured
    return structure.read(pruned) is not None


def mask_files(path: Path) -> tensors.TensorFiles:
    """The masks in `path`, a safetensors file or a sparse model.

    Raises:
        RequestError: it is neither, or damaged.

    """
    expected = "a .safetensors file of masks, or the directory of a sparse model"
    if not path.exists():
        raise request_error("prune.mask", expected, f"{path}, which does not exist", "correct the path")
    try:
        return tensors.TensorFiles(path)
    except LorsError as error:
        raise request_error("prune.mask", expected, error, "name another one") from None


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


def log_modules(found: dict[str, Any]) -> None:
    """Say what the linears hold, those of the same place in their blocks together."""
    for name, facts in found["modules"].items():
        log.debug("%s: sparsity %.6f, %s", name, facts["sparsity"], facts["pattern"])
    for place, linears in measure.by_place(found["modules"]).items():
        values, kinds = [facts["sparsity"] for facts in linears], "/".join(sorted({f["pattern"] for f in linears}))
        log.info("  %-12s %3d x sparsity %.4f to %.4f, %s", place, len(values), min(values), max(values), kinds)
    log.info("  all linears of the blocks: sparsity %.4f, %s", found["sparsity"], found["pattern"])

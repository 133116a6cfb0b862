"""``lors prune``: dense model -> <output_dir>/pruned, block by block.

Each block sees the states that the pruned blocks before it produce: the statistics of its linears are gathered on
these, its linears are pruned, and it is run again for the states of the next.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lors_cli import console, pruning
from lors_cli.artifacts import digest, tensors
from lors_cli.config.schema import Calibration, Config, Prune
from lors_cli.data import windows
from lors_cli.errors import LorsError, Problem, RequestError
from lors_cli.models import linears, load, sequential, source
from lors_cli.pruning.statistics import STATISTICS
from lors_cli.sparsity import mask
from lors_cli.stages import common, inspect
from lors_cli.stages.job import Job

log = logging.getLogger(__name__)


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check the request against the model's shapes and the calibration text; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "prune", config.prune)
    method = pruning.METHODS[section.method]
    calibration = section.calibration if method.statistic else None
    if calibration:
        next(calibration.dataset.source("prune.calibration.dataset").texts())
    device = load.pick_device(config.device)
    directory = source.resolve(section.input or config.model, "prune.input" if section.input else "model")
    skeleton = load.skeleton(directory, trust_remote_code=config.trust_remote_code)
    _check_shapes(section, linears.all_linears(skeleton))
    if calibration:
        load.warn_of_length(skeleton, calibration.sequence_length, "prune.calibration.sequence_length")
    tokens = _calibration_tokens(config, calibration, directory) if calibration else None

    def work(partial: Path) -> dict[str, Any]:
        model = load.load_model(directory, config.dtype, device, trust_remote_code=config.trust_remote_code)
        facts = _prune(model, section, tokens)
        _save(model, directory, partial)
        return {**facts, **_verify(partial, section, config.trust_remote_code)}

    output = Path(config.output_dir) / "pruned"
    return Job(
        stage="prune",
        output=output,
        inputs={"model": directory},
        settings={
            **common.settings(config, section),
            "calibration_source": calibration.dataset.source("").identity() if calibration else None,
        },
        config=config,
        work=work,
        plan=_plan(skeleton, config, section, tokens),
        report=lambda: console.result(str(output)),
    )


def _calibration_tokens(config: Config, calibration: Calibration, directory: Path) -> Tensor:
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    text = calibration.dataset.source("prune.calibration.dataset")
    if calibration.sampling == "concat":
        return windows.concatenated(text, tokenizer, calibration.sequence_length, calibration.samples)
    return windows.random_windows(text, tokenizer, calibration.sequence_length, calibration.samples, config.seed)


def _check_shapes(section: Prune, found: dict[str, nn.Linear]) -> None:
    m = section.sparsity.m
    wrong = [name for name, linear in found.items() if m and linear.in_features % m]
    if wrong:
        raise RequestError(
            Problem(
                "prune.sparsity",
                f"N:M with M dividing the inputs of every linear ({wrong[0]} has {found[wrong[0]].in_features})",
                str(section.sparsity),
                "use another M, or a fraction",
            )
        )


def _plan(skeleton: Any, config: Config, section: Prune, tokens: Tensor | None) -> list[str]:
    weights = load.weight_bytes(skeleton, config.dtype)
    hidden = skeleton.config.get_text_config().hidden_size
    states = tokens.numel() * hidden * 4 if tokens is not None else 0
    widest = max(linear.in_features for linear in linears.all_linears(skeleton).values())
    solve = 3 * 4 * widest**2 if pruning.METHODS[section.method].statistic == "hessian" else 0
    return [
        f"{section.method} to {section.sparsity}, {len(linears.all_linears(skeleton))} linears",
        f"memory: weights {weights / 1e9:.2f} GB, calibration states {states / 1e9:.2f} GB,"
        f" solver {solve / 1e9:.2f} GB",
        f"disk: {weights / 1e9:.2f} GB",
    ]


@torch.no_grad()
def _prune(model: Any, section: Prune, tokens: Tensor | None) -> dict[str, Any]:
    """Prune all linears of `model` in place."""
    prefix, blocks = linears.find_blocks(model)
    calls = None
    if tokens is not None:
        # one window at a time, as the published codes do: a batch would round otherwise
        calls = sequential.capture(model, list(tokens.to(model.device).split(1)))
    seen: dict[str, int] = {}
    with console.progress("prune: block", len(blocks)) as advance:
        for index, block in enumerate(blocks):
            statistics = _gather(block, index, calls, section) if calls else {}
            for name, linear in linears.block_linears(block).items():
                full = f"{prefix}.{index}.{name}"
                seen[full] = getattr(statistics.get(name), "tokens", 0)
                linear.weight.copy_(_pruned_weight(full, linear.weight, statistics.get(name), section))
                log.debug("pruned %s to %.4f", full, mask.sparsity(linear.weight))
            if calls:
                for batch in range(len(calls.states)):
                    calls.states[batch] = calls.run(block, index, batch)
            advance("")
    if tokens is None:
        return {}
    facts = {"windows": len(tokens), "tokens": tokens.numel(), "token_digest": digest.of_value(tokens.tolist())}
    return {"calibration": {**facts, "tokens_per_linear": seen}}


def _gather(block: nn.Module, index: int, calls: sequential.Calls, section: Prune) -> dict[str, Any]:
    """Run all batches through `block` and gather the statistic of each linear's inputs."""
    kind = pruning.METHODS[section.method].statistic
    statistics = {name: STATISTICS[kind]() for name in linears.block_linears(block)} if kind else {}
    with _watching(block, statistics):
        for batch in range(len(calls.states)):
            calls.run(block, index, batch)
    return statistics


@contextmanager
def _watching(block: nn.Module, statistics: dict[str, Any]) -> Iterator[None]:
    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: statistics[name].add(inputs[0]))
        for name, linear in linears.block_linears(block).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pruned_weight(name: str, weight: Tensor, statistic: Any, section: Prune) -> Tensor:
    method = pruning.METHODS[section.method]
    value = None
    if method.statistic:
        if statistic.tokens == 0:
            raise LorsError(f"{name}: no calibration token reached it, so there is nothing to prune it by")
        value = statistic.value()
    for what, tensor in (("weights", weight), ("calibration inputs", value)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise LorsError(f"{name}: NaN or infinity in its {what}; check the model, or use dtype: float32")
    options = {option: getattr(section, option) for option in method.options}
    try:
        return mask.positive_zeros(method.prune(weight, value, section.sparsity, **options))
    except LorsError as error:
        raise LorsError(f"{name}: {error}") from None


def _save(model: Any, original: Path, partial: Path) -> None:
    try:
        model.save_pretrained(partial, max_shard_size="5GB")
        tensors.copy_companions(original, partial)
    except (safetensors.SafetensorError, OSError) as error:
        raise tensors.write_failed(partial, error) from error


def _verify(directory: Path, section: Prune, trust_remote_code: bool) -> dict[str, Any]:
    """Measure the saved files, print what each linear got, and check it against what was asked.

    Raises:
        LorsError: the files do not hold the pattern.

    """
    pattern = section.sparsity
    found = inspect.inspect_model(directory, pattern, trust_remote_code=trust_remote_code)
    for name, facts in found["modules"].items():
        if not facts.pop("holds") or facts["negative_zeros"] or not facts["finite"]:
            raise LorsError(f"{name}: the saved weights do not hold {pattern}: {facts}")
    common.log_modules(found)
    log.info(
        "prune: the files keep their size; zeros are stored like other numbers, and dense kernels run at dense speed"
    )
    return {key: found[key] for key in ("sparsity", "pattern", "modules")} | {"asked": str(pattern)}

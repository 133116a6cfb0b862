"""Merging into a quantised model: new codes on the same scales and zero points, proved on the files.

A merged weight is ``clamp(round(W' / scale) + zero_point)`` of the effective weight W' in float64, which is what
quantisation-aware training has computed with. Any other adapter's effective weights are changed by the rounding, and
how much is said.
"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.artifacts import files, model_files, quantized_files, tensors
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.config.schema import Merge
from lors_cli.errors import LorsError, removal, request_error
from lors_cli.models.weights import Weights
from lors_cli.quantization import packed, stored
from lors_cli.quantization.stored import Quantized
from lors_cli.run.graph import Input
from lors_cli.stages import merged_weight

log = logging.getLogger(__name__)


def check(section: Merge, model: Input, *, aware: bool) -> None:
    """Check that `merge.requantize` has an effect, and not that of making another model than was trained.

    Args:
        section: of the config.
        model: to merge into.
        aware: whether training was quantisation-aware.

    Raises:
        RequestError: it does not.

    """
    key = "merge.requantize"
    remedy = removal(key, *(["merge.calibration"] if section.calibration else []), together=True)
    if model.grid is None:
        got = f"{section.requantize} for {model.path}, whose weights are floats"
        raise request_error(key, "a quantised model to merge into", got, remedy)
    if aware and section.requantize != "rounding":
        expected = "rounding, because quantization_aware training has computed with the model's codes"
        raise request_error(key, expected, section.requantize, remedy)


def linear_of(key: str, weights: Weights) -> str | None:
    """The linear, as the files call it, of whose quantised weight the tensor `key` is a part; None if it is of none."""
    linear, _, part = key.rpartition(".")
    parts = (stored.PACKED, stored.SCALE, stored.ZERO_POINT, stored.SHAPE)
    return linear if part in parts and is_quantized(weights) and linear in _quantized(weights).linears else None


def merged_codes(
    key: str, linear: str, content: AdapterFile, section: Merge, weights: Weights, solved: QuantizedFiles | None
) -> Tensor | None:
    """The tensor `key`, if it is the codes of a linear with an adapter, after merging; None if it stays as it is.

    The codes are those that were `solved` for, if they were.

    Raises:
        LorsError: the effective weight is not finite.

    """
    module = weights.by_file[f"{linear}.weight"].removesuffix(".weight")
    if key != f"{linear}.{stored.PACKED}" or module not in content.modules:
        return None
    if solved:
        written = weights.written[f"{module}.weight"].removesuffix("weight")
        return solved.inner.tensor(f"{written}{stored.PACKED}")
    weight = _quantized(weights).quantized(linear)
    return stored.pack(merged_weight.rounded(content, module, weight, section).codes, weight.grid.bits)


def record(pruned: Path, partial: Path, section: Merge) -> None:
    """Say in the merged model's files how its weights are quantised, which copied configs do not, or that none is."""
    if section.requantize != "none":
        said = files.read_object(pruned / "config.json")[quantized_files.KEY]
        config = files.read_object(partial / "config.json")
        files.write_json(partial / "config.json", {**config, quantized_files.KEY: said})
    elif (partial / model_files.INDEX).is_file():
        shards = {path.name: tensors.TensorFiles(path).layout for path in sorted(partial.glob("*.safetensors"))}
        size = sum(math.prod(shape) * dtype.itemsize for layout in shards.values() for shape, dtype in layout.values())
        places = {name: shard for shard, layout in shards.items() for name in layout}
        files.write_json(partial / model_files.INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def prove(weights: Weights, directory: Path, content: AdapterFile, section: Merge) -> dict[str, int | float | str]:
    """Compare codes, scales and zero points in the `directory` of the merged model with those of the model before.

    Returns:
        facts for the manifest: how many codes moved, and what rounding took.

    Raises:
        LorsError: a scale, a zero point or the codes of a linear without an adapter have changed; or, after
            quantisation-aware training, a weight is not the one that was trained, to the last bit.

    """
    moved = adapted = 0
    errors = updates = 0.0
    aware = content.quantization_aware
    before, merged = _quantized(weights), quantized_files.open_quantized(directory)
    for linear in before.linears:
        module = weights.by_file[f"{linear}.weight"].removesuffix(".weight")
        old, new = before.quantized(linear), merged.quantized(linear)
        same = torch.equal(old.scale, new.scale)
        if old.zero_point is not None and new.zero_point is not None:  # the grid is the same, as config.json is
            same = same and torch.equal(old.zero_point, new.zero_point)
        if not same:
            raise LorsError(f"{module}: the merge changed the scales or the zero points; nothing was published")
        differ = int((old.codes != new.codes).sum())
        if module not in content.modules:
            if differ:
                raise LorsError(f"{module}: the merge changed codes of a linear without an adapter; nothing published")
            continue
        if aware and not torch.equal(_trained(content, module, old), new.weight(torch.float32)):
            raise LorsError(f"{module}: the merged weight is not the trained one; nothing was published")
        effective = merged_weight.exact(content, module, old, section)
        moved, adapted = moved + differ, adapted + old.codes.numel()
        errors += float((new.weight(torch.float64) - effective).square().sum())
        updates += float((effective - old.weight(torch.float64)).square().sum())
    share = moved / max(adapted, 1)
    log.info("merge: the scales are as they were; %d codes moved, %.2f %% of the adapted linears'", moved, 100 * share)
    if not moved:
        log.warning(
            "merge: the merged model is the quantised one, because training moved no weight by half a step of its grid;"
            " more steps or a larger learning rate would"
        )
    if aware:
        log.info("merge: each weight is the trained one to the last bit (quantization_aware)")
        return {"codes_moved": moved, "requantized": "trained"}
    lost = (errors / updates) ** 0.5 if updates else 0.0
    way = section.requantize or "rounding"
    log.warning(
        "merge: %s has changed the effective weights by %.2f times what training had; train with"
        " quantization_aware: true for a merged model that is the trained one",
        "gptq on the model's grid" if way == "gptq" else "rounding to the model's grid",
        lost,
    )
    return {"codes_moved": moved, "requantized": way, "rounding_error": lost}


def _trained(content: AdapterFile, module: str, weight: Quantized) -> Tensor:
    """The weight in float32 with which the adapter was trained, as training computes it."""
    rank, alpha = content.of(module)
    factors = content.modules[module]["lora_A"], content.modules[module]["lora_B"]
    coded, bits = packed.pack(weight), weight.grid.bits
    return EffectiveWeight(coded, *factors, alpha / rank, None, torch.float32, bits=bits).make()


def _quantized(weights: Weights) -> QuantizedFiles:
    if not isinstance(weights.files, QuantizedFiles):
        raise TypeError("the files of a quantised model")
    return weights.files


def is_quantized(weights: Weights) -> bool:
    """Whether the files are those of a quantised model."""
    return isinstance(weights.files, QuantizedFiles)

"""Quantised models in memory with the codes of their linears, not with the numbers that these stand for."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli.adapters import METHODS
from lors_cli.adapters.attached import Settings
from lors_cli.adapters.int4_linear import Int4Linear
from lors_cli.adapters.replace import replace_linears
from lors_cli.artifacts import inputs, quantized_files
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.errors import as_value_error
from lors_cli.models import load
from lors_cli.models.linears import all_linears
from lors_cli.models.weights import Weights, open_weights
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized


class Coded(NamedTuple):
    """The codes of a quantised model: their grid, and the names of the linears that have some."""

    grid: Grid
    names: list[str]


def coded(weights: Weights) -> list[str]:
    """The names of the linears of a model that are quantised in its files."""
    files = weights.files
    names = files.linears if isinstance(files, QuantizedFiles) else []
    return [weights.by_file[f"{name}.weight"].removesuffix(".weight") for name in names]


@inputs.reads_model(weights=True)
def load_codes(directory: Path, dtype: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a quantised directory on the host, with an `Int4Linear` in the place of each quantised linear.

    Args:
        directory: of the model.
        dtype: in which it computes, "auto" or a key of `load.DTYPES`.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        RequestError: it is not a model that transformers can build, its files are not its own, or a weight is not on
            the grid that config.json names.

    """
    model: Any = load.skeleton(directory, dtype, trust_remote_code=trust_remote_code, quantized=True)
    weights = open_weights(directory, model, "model")
    names = load.layout(model)
    placed = set(place(model, weights, all_linears(model)))
    content: dict[str, Tensor] = {
        name: weights.tensor(name).to(like.dtype)
        for name, like in names.items()
        if name.removesuffix(".weight") not in placed
    }
    model.load_state_dict(content, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


def attach(model: Any, content: AdapterFile) -> None:
    """Give a model that was loaded from a quantised directory the adapters of a quantisation-aware training.

    The adapted linears get their codes back; the adapters' tensors are those of a start.

    Raises:
        ValueError: the directory is not that of the model that they were trained on.

    """
    name = model.config._name_or_path
    directory, names = Path(name), list(content.modules)
    expected = "the quantised model that the adapter was trained on, from its directory (or merge it), got"
    if not name or not quantized_files.grid_of(directory):
        raise ValueError(f"{expected} {name or 'a model that is from no directory'}")
    with as_value_error():
        placed = place(model, open_weights(directory, load.skeleton(directory, quantized=True), "model"), names)
    if left := sorted(set(names) - set(placed)):
        raise ValueError(f"{expected} {directory}, where {left[0]} is not quantised")
    settings = Settings(content.method, content.rank, content.alpha, 0.0, quantization_aware=True)
    kind = METHODS[content.method].adapter
    options: dict[str, Any] = {"rank": content.rank, "alpha": content.alpha, "quantization_aware": True}
    replace_linears(model, names, kind, base="int4", **options)
    settings.keep_in(model)


def place(model: nn.Module, weights: Weights, names: Collection[str]) -> list[str]:
    """Give those of the linears `names` that are quantised in the files their codes; which ones these are."""
    placed = []
    for name in names:
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear) and (quantized := of_linear(weights, name)):
            coded = Int4Linear(quantized, linear.bias, linear.weight.dtype)
            if not linear.weight.is_meta:
                coded.to(linear.weight.device)
            model.set_submodule(name, coded)
            placed.append(name)
    return placed


def of_linear(weights: Weights, name: str) -> Quantized | None:
    """The quantised weight of the linear `name` of a model; None where the files have it as numbers."""
    stored = weights.stored_name(f"{name}.weight")
    files = weights.files
    if isinstance(files, QuantizedFiles) and stored.removesuffix(".weight") in files.linears:
        return files.quantized(stored.removesuffix(".weight"))
    return None

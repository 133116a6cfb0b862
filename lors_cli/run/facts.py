"""What each stage records in its manifest: a type of facts for each."""

from typing import Any

from pydantic import BaseModel, ConfigDict

Number = int | float  # an int stays one: 16 and 16.0 are not the same bytes


class Record(BaseModel):
    """Checked in its types when it is made or read; keys that it does not declare are kept."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class Facts(Record):
    """What a stage has found out. A fact that was not recorded is None, as manifests of older versions lack some."""

    @property
    def given(self) -> dict[str, Any]:
        """The facts that were recorded, by their keys; they are the arguments of a facts type that has them too."""
        return self.model_dump(exclude_unset=True)

    @property
    def said(self) -> str:
        """What the message about the end of the stage says of them."""
        return ""


class Pruned(Facts):
    """The facts of `lors prune`; the `parameters` before and after, and `reduction`, are for structured methods."""

    calibration: dict[str, Any] | None = None  # windows, tokens, token_digest, tokens_per_linear
    sparsity: Number | None = None
    pattern: str | None = None
    modules: dict[str, dict[str, Any]] | None = None  # by the names of the linears
    asked: Number | str | None = None
    states: str | None = None
    profile: Any = None
    quantization: dict[str, Any] | None = None  # bits, group_size, symmetric, bits_per_weight
    tuning: dict[str, Any] | None = None  # kept (blocks that stay as they were), seconds, blocks by their names
    parameters: dict[str, int] | None = None
    reduction: Number | None = None  # parameters of the original for each one that is left
    config_sizes: dict[str, int] | None = None  # what config.json says of the smaller blocks, if it can


class Quantized(Facts):
    """The facts of `lors quantize`."""

    calibration: dict[str, Any] | None = None  # windows, tokens, token_digest, tokens_per_linear
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    bits_per_weight: Number | None = None  # of the quantised weights on disk, with their scales and zero points
    sparsity: Number | None = None
    pattern: str | None = None
    zeros_before: int | None = None
    zeros: int | None = None
    modules: dict[str, dict[str, Any]] | None = None  # by the names of the linears
    states: str | None = None
    reduction: Number | None = None
    original: str | None = None  # the digest of the model that was pruned


class Trained(Facts):
    """The facts of `lors train`."""

    steps: int | None = None
    tokens: int | None = None
    first_loss: Number | None = None
    last_loss: Number | None = None
    eval_losses: list[Number] | None = None
    kept_step: int | None = None
    eval_loss: Number | None = None  # at the step that is kept
    trainable_parameters: int | None = None
    tokens_per_second: Number | None = None
    processes: int | None = None
    merge_cache: dict[str, Any] | None = None  # linears, merges, hits
    data: dict[str, Any] | None = None  # by the keys of the data sets in the config
    train_dtype: str | None = None
    trainer: dict[str, Any] | None = None  # what accelerate did: mixed precision, kind of distribution, compiler
    init: str | None = None
    further: dict[str, Any] | None = None  # what was trained before: steps, tokens, samples; whether with its optimizer
    optimizer_step: Number | None = None  # AdamW's, whose state lies beside the adapter
    linears: int | None = None
    also: list[str] | None = None  # the parameters of the model that were trained beside the adapters
    estimated_bytes: int | None = None

    @property
    def said(self) -> str:
        """The losses."""
        parts = (
            [] if self.first_loss is None else [f"loss {self.first_loss:.4g} at first, {self.last_loss:.4g} at last"]
        )
        if self.eval_loss is not None:
            parts.append(f"{self.eval_loss:.4g} on the held-out rows at step {self.kept_step}, which is kept")
        return ", ".join(parts)


class Merged(Facts):
    """The facts of `lors merge`."""

    method: str | None = None
    rank: int | None = None
    alpha: Number | None = None
    sparsity: Number | None = None
    pattern: str | None = None
    zeros: int | None = None
    parameters: int | None = None
    returned_zeros: int | None = None
    codes_moved: int | None = None  # of a quantised model
    requantized: str | None = None  # how its codes came about
    rounding_error: Number | None = None  # of the effective weights, as a multiple of the update's norm
    output_error: Number | None = None  # of gptq: the mean relative change of the linears' outputs
    also: list[str] | None = None  # the parameters that were replaced by trained values, besides the linears
    rank_search: dict[str, Any] | None = None  # evaluations, first_loss and loss in nats a token, ranks by linears
    modules: dict[str, dict[str, Any]] | None = None


class Aligned(Merged, Trained):
    """The facts of `lors align`, which trains and merges; later stages need the last two of the pruned model."""

    reduction: Number | None = None
    original: str | None = None  # the digest of the model that was pruned


class Recovered(Facts):
    """The facts of `lors recover`."""

    method: str | None = None
    rank: int | None = None
    alpha: Number | None = None
    linears: int | None = None
    parameters: int | None = None
    structured: bool | None = None
    trained: str | None = None  # the method that the adapter was trained with


class Evaluated(Facts):
    """The facts of `lors eval`: the results of each model, as they are in results.json."""

    models: dict[str, dict[str, Any]] | None = None


class Packed(Facts):
    """The facts of `lors pack`."""

    tensors: dict[str, int] | None = None  # how many were packed in which way
    bytes: int | None = None
    unpacked_bytes: int | None = None


FACTS: dict[str, type[Facts]] = {
    "prune": Pruned,
    "align": Aligned,
    "quantize": Quantized,
    "train": Trained,
    "recover": Recovered,
    "merge": Merged,
    "eval": Evaluated,
    "pack": Packed,
}

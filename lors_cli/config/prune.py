"""The section ``prune:``."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from lors_cli import pruning
from lors_cli.config.fields import (
    BatchSize,
    Count,
    Dataset,
    Fault,
    PathText,
    Section,
    SequenceLength,
    Sparsity,
    without_effect,
)
from lors_cli.config.grid import GridSection
from lors_cli.config.methods import Classes, MethodSection
from lors_cli.data import formats
from lors_cli.options import OneOf, Options
from lors_cli.pruning.rows import Method, Row, StructuredMethod


class CalibrationDataset(Dataset):
    """The rows to calibrate with. A plain string is its `path`."""

    format: Annotated[str, OneOf(formats.CALIBRATION)] | None = Field(
        None,
        description="text, chat (messages, by the tokenizer's template) or tokens (input_ids); recognised by the fields"
        " of the first row if left out",
    )


class Calibration(Section):
    """The text whose activations show which weights matter."""

    dataset: CalibrationDataset = Field(description="rows of text, of messages or of token ids")
    samples: Count = Field(128, description="how many windows are read")
    sequence_length: SequenceLength = Field(2048, description="tokens per window, whatever the maximum of the model is")
    sampling: Literal["concat", "random"] = Field(
        "concat",
        description="concat takes consecutive windows of the joined rows; random takes a random window of a random row,"
        " as the papers do",
    )


class Override(Section):
    """Another target for some linears."""

    match: str = Field(description="the name of a linear, the last parts of it, or a glob that fits the whole name")
    sparsity: Sparsity | None = Field(None, description="the fraction of zeros, or N:M, for these linears")
    skip: bool = Field(False, description="whether these linears stay dense")

    def faults(self) -> Iterator[Fault]:
        """Neither a target nor a skip, or both."""
        if self.skip == (self.sparsity is not None):
            drop = ("sparsity", "skip") if self.skip else ()
            yield Fault("", "either sparsity or skip: true", "" if drop else "add skip: true, or sparsity: 0.5", drop)


class TuneBlocks(Section):
    """Gradient steps (Adam) on what is left of each block, until it puts out what the dense block does."""

    steps: Count = Field(32, description="how many steps each block gets")
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = Field(
        1e-3, description="Adam's learning rate at the first step, from which it falls linearly to zero"
    )
    batch_size: BatchSize = Field(4, description="calibration windows per step, over all processes")
    target: Literal["layer", "dense"] = Field(
        "layer",
        description="what the block is brought back to; layer: what the dense block makes of the states that the pruned"
        " blocks before it leave; dense: what it makes of the dense model's own states",
    )


class Prune(MethodSection):
    """dense model -> <output_dir>/pruned"""

    input: str | None = Field(None, description="the model to prune; the top-level `model` if left out")
    method: Annotated[str, OneOf(pruning.all_methods)] = Field(
        description="how to prune; `lors methods` describes each"
    )
    sparsity: Sparsity | None = Field(
        None,
        description='the fraction of zeros (0.5), or "N:M": at most N nonzeros in M consecutive inputs; not needed with'
        " from_mask",
    )
    calibration: Calibration | None = Field(
        None, description="the text for a method, a profile, a repair or an update that looks at activations"
    )
    overrides: list[Override] = Field(
        [], description="other targets for some linears; the last one that matches a linear counts"
    )
    profile: Annotated[str, OneOf(pruning.PROFILES)] | None = Field(
        None,
        description="how the blocks differ in sparsity (see `lors methods`), with `sparsity` as the mean; they do not"
        " differ if left out",
    )
    sequential: Literal["block", "linear"] = Field(
        "block",
        description="what is already pruned when a linear is calibrated; block: the blocks before its own; linear: also"
        " the linears before it in its block",
    )
    repair: Annotated[str, OneOf(pruning.REPAIRS)] | None = Field(
        None, description="how pruned weights are changed afterwards (see `lors methods`); not at all if left out"
    )
    update: Annotated[str, OneOf(["none", *pruning.UPDATES])] = Field(
        "none",
        description="how the kept weights are changed once all zeros are chosen (see `lors methods`), whatever the"
        " method; none leaves them as the method does",
    )
    tune_blocks: TuneBlocks | None = Field(
        None,
        description="gradient steps on the kept weights and the norms of each block, after its linears were pruned,"
        " repaired and updated; {} takes the defaults",
    )
    quantize: GridSection | None = Field(
        None,
        description="sparsegpt: the grid to which the kept weights are rounded in the same solve, so that the pruned"
        " model is one as `lors quantize` makes; {} takes the defaults; not rounded if left out",
    )
    mask: PathText | None = Field(
        None, description="a .safetensors file of masks, or a sparse model whose zeros are taken; only for from_mask"
    )
    states: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="where the calibration states are kept; auto takes the first of device, host, disk with room",
    )

    @classmethod
    def option_classes(cls) -> Classes:
        """The options of all methods, profiles, repairs and updates."""
        rows = (pruning.all_methods(), pruning.PROFILES, pruning.REPAIRS, pruning.UPDATES)
        return {name: options for registry in rows for name, options in _options(registry).items()}

    @property
    def own_options(self) -> type[Options]:
        """The options of the method."""
        return pruning.all_methods()[self.method].options

    def faults(self) -> Iterator[Fault]:
        """What does not fit the method, and what would be without effect."""
        method = pruning.all_methods()[self.method]
        update = None if self.update == "none" else f"update: {self.update}"
        reader = self.method if method.calibrated else self.repair or self.profile or update
        needs = reader or ("tune_blocks" if self.tune_blocks else None)
        if needs and self.calibration is None:
            expected = f"calibration: {{dataset: ...}}, because {needs} looks at activations"
            yield Fault("calibration", expected, "add calibration: {dataset: ...}, with text like the model's use")
        yield from self.option_faults(_options(pruning.all_methods()), self.method)
        for key, rows in (("profile", pruning.PROFILES), ("repair", pruning.REPAIRS), ("update", pruning.UPDATES)):
            yield from self._row_option_faults(key, rows)
        if self.sequential == "linear" and self.option("permute"):
            expected = "sequential: block with permute, which changes several linears together"
            yield Fault("sequential", expected, "write sequential: block, or permute: false")
        yield from self._structured_faults() if isinstance(method, StructuredMethod) else self._zeros_faults(method)
        if self.changed("sequential") and not reader:
            yield without_effect("sequential", f"{self.method} does not look at activations")

    def _row_option_faults(self, key: str, rows: Mapping[str, Row]) -> Iterator[Fault]:
        """The options of a profile, a repair or an update that is not chosen."""
        own = rows[getattr(self, key)].options.model_fields if getattr(self, key) in rows else {}
        for name, row in rows.items():
            for option in row.options.model_fields.keys() - own.keys():
                if self.changed(option):
                    yield without_effect(option, f"it is for {key}: {name}", f"add {key}: {name}")

    def _structured_faults(self) -> Iterator[Fault]:
        for key in ("sparsity", "profile", "repair", "tune_blocks", "mask", "overrides"):
            if getattr(self, key):
                expected = f"no {key}: {self.method} makes blocks smaller and does not leave zeros"
                yield Fault(key, expected, drop=(key,))
        if self.update != "none":
            expected = f"update: none: {self.method} makes blocks smaller and does not leave zeros"
            yield Fault("update", expected, drop=("update",))
        if self.quantize:
            yield self._not_rounded()
        for key in ("sequential", "states"):
            if self.changed(key):
                yield without_effect(key, f"{self.method} does not go from block to block")

    def _zeros_faults(self, method: Method) -> Iterator[Fault]:
        fraction = self.sparsity is not None and self.sparsity.m is None
        yield from self._tuning_faults()
        yield from self._rounding_faults(method)
        if self.mask and not method.reads_mask:
            yield without_effect("mask", f"{self.method} makes its own", "write method: from_mask")
        if method.reads_mask and not self.mask:
            yield Fault("mask", "mask: PATH with method: from_mask", "add mask: PATH")
        if self.sparsity is None and not method.reads_mask:
            yield Fault("sparsity", "sparsity: a fraction of zeros, or N:M", 'add sparsity: 0.5, or sparsity: "2:4"')
            return
        if self.option("variant") and not fraction:
            expected = "variant: false with N:M, which fixes how many weights a row loses"
            yield Fault("variant", expected, "write a fraction as sparsity", drop=("variant",))
        if self.option("permute") and fraction:
            expected = "permute: false with a fraction, because the order of inputs matters only to N:M"
            yield Fault("permute", expected, 'write N:M as sparsity, such as "2:4"', drop=("permute",))
        if self.profile:
            yield from self._profile_faults(fraction)

    def _tuning_faults(self) -> Iterator[Fault]:
        if self.tune_blocks and self.calibration and self.tune_blocks.batch_size > self.calibration.samples:
            most = self.calibration.samples
            expected = f"a batch_size of at most {most} windows, which is calibration.samples"
            yield Fault("tune_blocks.batch_size", expected, f"write tune_blocks: {{batch_size: {most}}}")

    def _rounding_faults(self, method: Method) -> Iterator[Fault]:
        if not self.quantize:
            return
        if not method.rounds:
            yield self._not_rounded()
        for key, off in (("repair", None), ("update", "none"), ("tune_blocks", None)):
            if getattr(self, key) != off:
                expected = f"no {key} with quantize: the weights would leave the grid that they were rounded to"
                yield Fault(key, expected, drop=(key,))
        m = self.sparsity.m if self.sparsity else None
        if m and self.quantize.group_size % m:
            expected = f"a group_size that {m} divides, because N:M is chosen within groups"
            yield Fault("quantize.group_size", expected, f"write quantize: {{group_size: {32 * m}}}")

    def _not_rounded(self) -> Fault:
        rounding = ", ".join(name for name, row in pruning.METHODS.items() if row.rounds)
        expected = f"no quantize: {self.method} chooses zeros without rounding the rest"
        return Fault("quantize", expected, f"add a section quantize: beside prune, or write method: {rounding}")

    def _profile_faults(self, fraction: bool) -> Iterator[Fault]:
        if self.mask:
            yield without_effect("profile", "the mask says what each block gets")
        elif not fraction or self.sparsity is None:
            expected = "a fraction as sparsity with a profile: N:M cannot vary from block to block"
            yield Fault("sparsity", expected, "write a fraction such as sparsity: 0.5", drop=("profile",))
        else:
            width, limit = getattr(self, "profile_range", 0.0), min(self.sparsity.sparsity, 1 - self.sparsity.sparsity)
            if not width < limit:
                expected = f"a profile_range below {limit:g}: blocks that differ by {width:g} cannot have a mean of"
                remedy = "write a smaller profile_range, or another sparsity"
                yield Fault("profile_range", f"{expected} {self.sparsity}", remedy)


def _options(rows: Mapping[str, Row]) -> dict[str, type[Options]]:
    return {name: row.options for name, row in rows.items()}

"""The section ``prune:``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lors_cli import pruning
from lors_cli.config.fields import Count, Dataset, Fraction, PathText, Section, Sparsity, one_of
from lors_cli.data.formats import CALIBRATION
from lors_cli.pruning.rows import Row, StructuredMethod


class CalibrationDataset(Dataset):
    """A data set with a format; recognised by its fields if left out."""

    format: Annotated[str, one_of("format", list(CALIBRATION))] | None = Field(
        None, description="calibration only: text, chat (messages, by the tokenizer's template) or tokens (input_ids)"
    )


class Calibration(Section):
    """Text whose activations tell which weights matter."""

    dataset: CalibrationDataset = Field(description="rows of text, messages or token ids")
    samples: Count = Field(128, description="windows")
    sequence_length: Annotated[int, Field(ge=2)] = Field(
        2048, description="tokens per window; never the model's maximum"
    )
    sampling: Literal["concat", "random"] = Field(
        "concat", description="concat: consecutive windows of the joined rows; random: the papers' rule"
    )


class Override(Section):
    """Another target for some linears."""

    match: str = Field(description="a linear's name, the last parts of it, or a glob of the whole name")
    sparsity: Sparsity | None = Field(None, description="fraction or N:M for these")
    skip: bool = Field(False, description="leave these dense")

    @model_validator(mode="after")
    def _check(self) -> "Override":
        if self.skip == (self.sparsity is not None):
            raise ValueError("either sparsity or skip: true")
        return self


class Prune(Section):
    """dense model -> <output_dir>/pruned"""

    input: str | None = Field(None, description="a model; the top-level `model` if left out")
    method: Annotated[str, one_of("pruning method", list(pruning.all_methods()))] = Field(
        description=", ".join(pruning.all_methods())
    )
    sparsity: Sparsity | None = Field(
        None,
        description='fraction of zeros (0.5), or "N:M": at most N nonzeros in M inputs; from_mask may leave it out',
    )
    calibration: Calibration | None = Field(None, description="needed by whatever looks at activations")
    overrides: list[Override] = Field([], description="other targets for some linears; the last match counts")
    profile: Literal["owl"] | None = Field(
        None, description="a fraction for each block by its outliers (Yin et al. 2024); their mean is `sparsity`"
    )
    profile_range: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.08, description="lambda of owl: blocks differ by at most twice this"
    )
    profile_outlier: Annotated[float, Field(gt=0)] = Field(
        5.0, description="M of owl: a score above so many times the block's mean is an outlier"
    )
    sequential: Literal["block", "linear"] = Field(
        "block", description="whether linears see the pruned blocks before them, or also the linears inside the block"
    )
    repair: Literal["dsnot"] | None = Field(None, description="exchange weights after pruning (Zhang et al. 2024)")
    repair_cycles: Count = Field(50, description="dsnot: exchanges tried in each row")
    damping: Annotated[float, Field(gt=0)] = Field(
        0.01, description="sparsegpt: fraction of the Hessian's mean diagonal"
    )
    block_size: Count = Field(128, description="sparsegpt: columns whose mask is chosen together")
    variant: bool = Field(False, description="wanda: rows differ in sparsity, by one share of their scores' sums")
    exponent: Annotated[float, Field(ge=0)] = Field(0.5, description="ria: a, what the input norms are raised to")
    permute: bool = Field(False, description="ria, N:M: reorder inputs where that folds into the linears before")
    ratio: Fraction | None = Field(None, description="structured: of groups and channels that go, in each block")
    keep_first: Annotated[int, Field(ge=0)] = Field(4, description="structured: blocks at the start that stay whole")
    keep_last: Annotated[int, Field(ge=0)] = Field(2, description="structured: blocks at the end that stay whole")
    importance: Literal["element", "vector"] = Field(
        "element", description="structured_taylor: element adds up |w g|; vector takes |sum of w g| of rows and columns"
    )
    aggregation: Literal["sum", "prod", "max", "last"] = Field(
        "sum", description="structured_taylor: how the linears of a group are joined: sum, prod, max or last"
    )
    mask: PathText | None = Field(None, description="from_mask: a .safetensors file of masks, or a sparse model")
    states: Literal["auto", "device", "host", "disk"] = Field(
        "auto", description="where the calibration states are kept; auto: the first of these with room"
    )

    @model_validator(mode="after")
    def _check(self) -> "Prune":
        method = pruning.all_methods()[self.method]
        reader = self.method if method.calibrated else self.repair or self.profile
        if reader and self.calibration is None:
            raise ValueError(f"calibration: {{dataset: ...}}, because {reader} looks at activations")
        self._check_options(method)
        if isinstance(method, StructuredMethod):
            return self._check_structured()
        fraction = self.sparsity is not None and self.sparsity.m is None
        if (self.mask is None) == method.reads_mask:
            raise ValueError("mask: PATH together with method: from_mask, and only then")
        if self.sparsity is None and not method.reads_mask:
            raise ValueError("sparsity: a fraction of zeros, or N:M")
        if self.variant and not fraction:
            raise ValueError("variant: false with N:M, which fixes how many weights a row loses")
        if self.permute and fraction:
            raise ValueError("permute: false with a fraction: an order of inputs matters to N:M only")
        if self.profile:
            self._check_profile(fraction)
        return self

    def _check_structured(self) -> "Prune":
        if self.ratio is None:
            raise ValueError("ratio: a fraction of groups and channels that go")
        for option in ("sparsity", "profile", "repair", "mask", "overrides"):
            if getattr(self, option):
                raise ValueError(f"no {option}: {self.method} leaves no zeros, its blocks get smaller")
        return self

    def _check_options(self, method: Row) -> None:
        known = {option for row in pruning.all_methods().values() for option in row.options.model_fields}
        for option in sorted(self.model_fields_set & known - set(method.options.model_fields)):
            raise ValueError(f"no {option}: {self.method} has no such option")
        if self.sequential == "linear" and self.permute:
            raise ValueError("sequential: block with permute, which changes several linears together")

    def _check_profile(self, fraction: bool) -> None:
        if self.mask:
            raise ValueError("no profile with from_mask: the mask says what each block gets")
        if not fraction or self.sparsity is None:
            raise ValueError("a fraction as sparsity with a profile: N:M cannot vary from block to block")
        if not self.profile_range < min(self.sparsity.sparsity, 1 - self.sparsity.sparsity):
            raise ValueError(
                f"a profile_range below {min(self.sparsity.sparsity, 1 - self.sparsity.sparsity):g}: blocks that differ"
                f" by {self.profile_range:g} cannot have a mean of {self.sparsity}"
            )

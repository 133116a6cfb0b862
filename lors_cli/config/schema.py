"""What a config file may say: one section per stage, every key with its unit and default."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lors_cli import adapters
from lors_cli.config import recipes
from lors_cli.config.align import Align
from lors_cli.config.elastic import RankSearch
from lors_cli.config.evaluation import Eval
from lors_cli.config.fields import Count, Device, Dtype, Fault, PathText, Section, Seed, without_effect
from lors_cli.config.prune import Calibration, Prune
from lors_cli.config.quantize import Quantize
from lors_cli.config.train import Train
from lors_cli.errors import RequestError, request_error
from lors_cli.options import OneOf


class Recover(Section):
    """adapter of a pruned model -> <output_dir>/recovered, an adapter of the original (LoRAM)"""

    input: str | None = Field(None, description="the pruned model; the one that train adapts if left out")
    adapter: str | None = Field(None, description="the adapter of that model; the one that train makes if left out")
    mask: Literal["none", "kept"] = Field(
        "none",
        description="after pruning that leaves zeros: none gives the original the whole product lora_B @ lora_A, an"
        " adapter that PEFT loads; kept gives it the update that lors or sqft trained, that of the weights that pruning"
        " kept, which `lors merge` alone can use",
    )

    @property
    def makes(self) -> str:
        """The form of the adapter that is made, a key of `adapters.ON_DISK`."""
        return adapters.MASKED if self.mask == "kept" else "lora"


class CutRank(Section):
    """The rank to which the adapter of some linears is cut."""

    match: str = Field(description="the name of a linear, the last parts of it, or a glob that fits the whole name")
    rank: Count = Field(description="one of train.elastic_ranks")


class Merge(Section):
    """pruned model + adapter -> <output_dir>/merged"""

    input: str | None = Field(
        None,
        description="the model to merge into; if left out, the one that train adapts, or the original after recover",
    )
    adapter: PathText | None = Field(
        None, description="the adapter to merge; the one that recover or else train makes if left out"
    )
    dense: bool = Field(False, description="whether a lora adapter is merged densely, which loses the zeros")
    apply_mask: bool = Field(
        False, description='whether the update of a lora adapter is masked at the merge (the baseline "LoRA*")'
    )

    requantize: Literal["rounding", "gptq", "none"] | None = Field(
        None,
        description="what becomes of a quantised model's effective weights: rounding (if left out) to its own scales;"
        " gptq on the same scales, with calibration; none leaves them numbers, for another `lors quantize`, which fits"
        " new scales",
    )
    calibration: Calibration | None = Field(None, description="the text for requantize: gptq")
    ranks: Count | list[CutRank] | None = Field(
        None,
        description="the rank to which an adapter of train.elastic_ranks is cut first: one for all linears, or entries"
        " for some, of which the last one that matches a linear counts; not cut if left out",
    )
    rank_search: RankSearch | None = Field(
        None, description="how ranks are searched for each linear by a held-out loss, instead of `ranks`"
    )

    def faults(self) -> Iterator[Fault]:
        """Two ways to merge, or to choose ranks, at once."""
        for one, other in (("dense", "apply_mask"), ("ranks", "rank_search")):
            if getattr(self, one) and getattr(self, other):
                yield Fault(one, f"{one} or {other}, not both", drop=(one, other))
        if self.calibration and self.requantize != "gptq":
            yield without_effect("calibration", "only requantize: gptq looks at activations", "write requantize: gptq")
        if self.requantize == "gptq" and not self.calibration:
            expected = "calibration: {dataset: ...}, because gptq looks at activations"
            yield Fault("calibration", expected, "add calibration: {dataset: ...}, with text like the model's use")


def missing(stage: str) -> RequestError:
    """The error for a stage that the config has no section for."""
    return request_error(stage, f"a section {stage}:", "none", f"add it, or run another stage than {stage}")


class Config(Section):
    """One experiment."""

    model: str = Field(
        description="a hub id, a local Hugging Face directory, a .gguf file, or the built-in smollm2-135m"
    )
    output_dir: PathText = Field(description="where the directories of the stages are made, from pruned to eval")
    recipe: Annotated[str, OneOf(recipes.NAMES)] | None = Field(
        None,
        description="a set of values for what prune and train leave out (`lors methods` lists them); best is short for"
        f" the newest one, {recipes.NEWEST}, and is recorded as that",
    )
    seed: Seed = Field(0, description="the seed of sampling, initialisation, dropout and the order of rows")
    dtype: Dtype = Field(
        "auto", description="the dtype of the weights, in work and on disk; auto keeps the one in which they are stored"
    )
    device: Device = Field("auto", description="where the work runs: auto, cpu, cuda, cuda:N or mps")
    trust_remote_code: bool = Field(False, description="whether the code in a model directory may run")
    prune: Prune | None = None
    align: Align | None = None
    quantize: Quantize | None = None
    train: Train | None = None
    recover: Recover | None = None
    merge: Merge | None = None
    eval: Eval | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, value: object) -> object:
        return recipes.fill(value)[0] if isinstance(value, dict) else value

    def faults(self) -> Iterator[Fault]:
        """A recipe for nothing."""
        if self.recipe and not (self.prune or self.train):
            yield without_effect("recipe", "there is neither prune nor train", "add a section that it has values for")

"""What a config file may say: one section per stage, every field with its unit and default."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lors_cli import adapters, processes
from lors_cli.config.evaluation import Eval
from lors_cli.config.fields import Count, Dataset, Dtype, Fraction, PathText, Section, one_of
from lors_cli.config.prune import Prune
from lors_cli.data.formats import TRAINING


class TrainingDataset(Dataset):
    """A data set with a format; recognised by its fields if left out."""

    format: Annotated[str, one_of("format", list(TRAINING))] | None = Field(
        None, description="training: alpaca, chat or text; calibration: text, chat or tokens; recognised if left out"
    )
    streaming: bool = Field(
        False,
        description="training: read the shards (a glob, a folder or a hub id) as training goes, never all at once",
    )


class Distill(Section):
    """Learn from a teacher's predictions too: weight * temperature^2 * KL(teacher || student) + (1 - weight) * loss"""

    teacher: str = Field("dense", description="dense: the config's model; or any model with the same vocabulary")
    weight: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of the divergence; the rest is the data's")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="divides both models' logits")


# Options that not every adapter has: what leaves one out, and why there is nothing to set.
OPTIONS = {
    "dropout": (0.0, "computes with a merged weight and has no path to drop"),
    "adapter_checkpointing": (False, "saves nothing that it could recompute"),
    "merge_cache": ("off", "keeps no merged weight"),
    "merge_rounding": ("nearest", "does not round a merged weight of its own"),
}


class Train(Section):
    """pruned model -> <output_dir>/adapter"""

    key: ClassVar[str] = "train"
    input: str | None = Field(None, description="a pruned model; what the stage before made if left out")
    method: Annotated[str, one_of("adapter method", list(adapters.METHODS))] = Field(
        description=", ".join(adapters.METHODS)
    )
    rank: Count = Field(16, description="of the update; spp: a divisor of each weight's rows")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="the update is scaled by alpha / rank")
    dropout: Fraction = Field(0.0, description="lora, spp: probability of dropping an input of the update")
    formulation: str | None = Field(
        None,
        description="how to compute it: lors: fused, listing; spp: listing, columns, merged; the first if left out",
    )
    init: Literal["gradient", "gradient_svd", "eva", "random"] | None = Field(
        None, description="of lora_A; gradient for lors, random for the others if left out"
    )
    init_steps: Count = Field(1, description="how many optimiser steps' samples a start from data looks at")
    base: Literal["dense", "packed", "nf4"] = Field(
        "dense",
        description="of frozen weights in memory; lors: packed, without their zeros; lora: nf4, in 4 bits (QLoRA)",
    )
    merge_cache: Literal["auto", "off", "full"] = Field(
        "auto", description="lors: keep merged weights within an optimiser step; auto: those that fit free memory"
    )
    merge_rounding: Literal["nearest", "stochastic"] = Field(
        "nearest", description="lors in bfloat16: stochastic lets updates below half a unit of a weight act"
    )
    target_modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names, last parts of names or globs of linears; every pruned linear if left out"
    )
    dataset: TrainingDataset = Field(description="Alpaca rows, chat rows or text")
    eval_dataset: TrainingDataset | None = Field(None, description="held-out rows for a loss during training")
    eval_steps: Count | None = Field(
        None, description="optimiser steps between held-out losses; 10 in a run if left out"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="with eval_dataset: the adapter of the lowest held-out loss, or of the last step"
    )
    sequence_length: Annotated[int, Field(ge=2)] = Field(512, description="tokens, at most, per sample")
    packing: bool = Field(
        False, description="put several rows into one sample; none sees another, and positions start again in each"
    )
    overlong: Literal["truncate", "refuse"] = Field(
        "truncate", description="rows of more than sequence_length tokens; truncated ones are counted"
    )
    batch_size: Count | None = Field(None, description="samples per optimiser step; 32 if left out")
    batch_tokens: Count | None = Field(None, description="instead of batch_size: tokens per step, in full samples")
    micro_batch_size: Count | None = Field(
        None, description="samples per forward pass of a process; its share of the batch if left out"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="of AdamW, the peak")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warm-up, to zero")
    warmup: Annotated[float, Field(ge=0)] = Field(0.0, description="steps, or a fraction of all steps if below 1")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW, on the adapters")
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="gradient clipping; 0 for none")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="passes over the data; 3 if both are left out"
    )
    max_steps: Count | None = Field(None, description="optimiser steps, instead of epochs")
    max_tokens: Count | None = Field(None, description="tokens to train on, instead of epochs; in whole steps")
    repeat: bool = Field(False, description="max_tokens or streaming: start the data again where they end too early")
    dtype: Dtype | None = Field(None, description="of the frozen model while training; the top-level dtype if left out")
    gradient_checkpointing: bool = Field(False, description="recompute each block's activations in backward")
    adapter_checkpointing: bool | Literal["reentrant"] = Field(
        False, description="sqft, spp: recompute the method's own (SQFT-gc, SPP-gc); reentrant: as older checkpoints do"
    )
    chunked_loss: bool = Field(True, description="compute the loss a chunk of tokens at a time, never all logits")
    distill: Distill | None = Field(None, description="knowledge distillation; left out: none")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: ddp has the whole model in each, fsdp shards the frozen weights (FSDP2)"
    )
    save_steps: Count | None = Field(None, description="optimiser steps between checkpoints; 20 in a run if left out")
    keep_checkpoints: Count = Field(2, description="checkpoints that stay while training, the latest ones")
    logging_steps: Count = Field(1, description="optimiser steps between lines of the log")
    report_to: list[Literal["tensorboard", "wandb"]] = Field([], description="besides training_log.jsonl")

    @model_validator(mode="after")
    def _check(self) -> "Train":
        method = adapters.METHODS[self.method]
        if self.formulation is not None and self.formulation not in method.formulations:
            raise ValueError(f"a formulation of {self.method}: {', '.join(method.formulations)}")
        for option, (none, reason) in OPTIONS.items():
            if getattr(self, option) not in (none, "auto") and option not in self.adapter.options:
                raise ValueError(f"{option}: {none}, because {self.method} ({self.adapter.__name__}) {reason}")
        if self.base not in self.adapter.bases:
            having = ", ".join(name for name, row in adapters.METHODS.items() if self.base in row.adapter.bases)
            raise ValueError(
                f"base: {' or '.join(self.adapter.bases)} with {self.method} ({self.adapter.__name__});"
                f" {self.base} is for {having}"
            )
        if self.resolved_init != "random" and not method.low_rank:
            raise ValueError(f"init: random, because {self.method} is no low-rank product")
        if sum(map(bool, (self.epochs, self.max_steps, self.max_tokens))) > 1:
            raise ValueError("only one of epochs, max_steps and max_tokens")
        if self.dataset.streaming and not (self.max_steps or self.max_tokens):
            raise ValueError("max_steps or max_tokens: nobody knows how long an epoch of a stream is")
        if self.eval_dataset and self.eval_dataset.streaming:
            raise ValueError("an eval_dataset without streaming: it is read as a whole, so give it a limit")
        if self.batch_size and self.batch_tokens:
            raise ValueError("batch_size or batch_tokens, not both")
        if self.batch_tokens and self.batch_tokens < self.sequence_length:
            raise ValueError(f"batch_tokens of at least sequence_length ({self.sequence_length})")
        if self.samples_per_step % self.samples_per_forward:
            raise ValueError(f"a micro_batch_size that divides the batch of {self.samples_per_step} samples")
        return self

    @property
    def adapter(self) -> type[adapters.Adapter]:
        """The module of the method, in the asked formulation."""
        method = adapters.METHODS[self.method]
        return method.formulations[self.formulation] if self.formulation else method.adapter

    @property
    def samples_per_step(self) -> int:
        """Samples per optimiser step."""
        return self.batch_tokens // self.sequence_length if self.batch_tokens else self.batch_size or 32

    @property
    def samples_per_forward(self) -> int:
        """Samples per forward pass of one process."""
        step = self.samples_per_step
        return self.micro_batch_size or (step if step % processes.count() else step // processes.count())

    @property
    def resolved_init(self) -> str:
        """How lora_A starts: as asked, else as the method's paper does it."""
        return self.init or ("gradient" if self.method == "lors" else "random")


class Align(Train):
    """pruned model -> <output_dir>/aligned: continual pre-training before the adapters, merged at once (LoRAM)"""

    key: ClassVar[str] = "align"
    method: Annotated[str, one_of("adapter method", list(adapters.METHODS))] = Field(
        "full", description="full: every weight of the linears; or low-rank: lors, sqft, for structured models lora"
    )

    @model_validator(mode="after")
    def _check_rank(self) -> "Align":
        if "rank" in self.model_fields_set and "method" not in self.model_fields_set:
            raise ValueError("method with rank: left out it is full, which has none and takes far more memory")
        return self


class Recover(Section):
    """adapter of a pruned model -> <output_dir>/recovered, an adapter of the original (LoRAM)"""

    input: str | None = Field(None, description="the pruned model; that of train if left out")
    adapter: str | None = Field(None, description="its adapter; that of train if left out")


class Merge(Section):
    """pruned model + adapter -> <output_dir>/merged"""

    input: str | None = Field(None, description="the pruned model; the one that train took if left out")
    adapter: PathText | None = Field(None, description="an adapter directory; <output_dir>/adapter if left out")
    dense: bool = Field(False, description="lora: merge densely and lose the zeros")
    apply_mask: bool = Field(False, description='lora: mask the update at the merge (the baseline "LoRA*")')

    @model_validator(mode="after")
    def _check(self) -> "Merge":
        if self.dense and self.apply_mask:
            raise ValueError("dense or apply_mask, not both")
        return self


class Config(Section):
    """One experiment."""

    model: str = Field(description="hub id, local HF directory, .gguf file, or the built-in smollm2-135m")
    output_dir: PathText = Field(description="the stages' directories, from pruned to eval, appear in it")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of sampling, initialisation, dropout and order")
    dtype: Dtype = Field("auto", description="of the weights, in work and on disk; auto: as they are stored")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    trust_remote_code: bool = Field(False, description="run code that a model directory brings")
    prune: Prune | None = None
    align: Align | None = None
    train: Train | None = None
    recover: Recover | None = None
    merge: Merge | None = None
    eval: Eval | None = None

"""The section ``train:``."""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lors_cli import adapters, processes
from lors_cli.config import elastic
from lors_cli.config.distill import Distill
from lors_cli.config.fields import (
    BatchSize,
    Count,
    Dtype,
    Fault,
    SequenceLength,
    without_effect,
)
from lors_cli.config.methods import Classes, MethodSection
from lors_cli.config.mixture import Mixing, TrainingData, TrainingDataset
from lors_cli.config.starting import Starting
from lors_cli.errors import nearest
from lors_cli.options import OneOf, Options

RATES = ", ".join(f"{name} {method.learning_rate:g}" for name, method in adapters.METHODS.items())


def samples_per_step(batch_size: int | None, batch_tokens: int | None, sequence_length: int) -> int:
    """Samples per optimiser step by the values of these keys."""
    return batch_tokens // sequence_length if batch_tokens else batch_size or 32


class Train(MethodSection, Mixing, Starting):
    """pruned model -> <output_dir>/adapter"""

    key: ClassVar[str] = "train"
    input: str | None = Field(
        None, description="the pruned model to train; the one that the stage before has made if left out"
    )
    method: Annotated[str, OneOf(adapters.METHODS)] = Field(
        description="which adapter is trained; `lors methods` describes each"
    )
    rank: Annotated[int, Field(ge=1, le=10**5)] = Field(
        16, description="the rank of the update; with spp it has to divide the rows of each weight"
    )
    alpha: Annotated[float, Field(gt=0, le=10**6)] = Field(16.0, description="the update is scaled by alpha / rank")
    formulation: str | None = Field(
        None,
        description="how the method is computed; its first formulation if left out (`lors methods` lists them)",
    )
    init: Literal["gradient", "gradient_svd", "eva", "random"] | None = Field(
        None, description="how lora_A starts; gradient for lors and random for the others if left out"
    )
    init_steps: Count = Field(1, description="how many optimiser steps' samples a start from data looks at")
    adapter: str | None = Field(
        None,
        description="an adapter to start from instead of `init`: one of the method; for lors and sqft also one of lora,"
        " and for lora one of PEFT",
    )
    resume_from: str | None = Field(
        None,
        description="the finished adapter/ of an earlier training, to train it further: max_steps, max_tokens or epochs"
        " count what is added",
    )
    resume_data: Literal["continue", "restart"] = Field(
        "continue",
        description="with resume_from: whether the data go on after the samples that were seen, or begin again",
    )
    save_optimizer: bool = Field(
        False, description="whether the finished adapter keeps AdamW's state, with which resume_from then goes on"
    )
    base: Literal["dense", "packed", "nf4", "int4"] = Field(
        "dense",
        description="the form of the frozen weights in memory; packed (lors) leaves their zeros out; nf4 (lora) has"
        " 4 bits a weight, as in QLoRA; int4 has the codes of a quantised model, at most 4 bits each, without zeros'",
    )
    elastic_ranks: Annotated[list[Count], Field(min_length=2)] | None = Field(
        None,
        description="ranks of which each step draws one for each linear, to train so many rows of lora_A and columns of"
        " lora_B (NLS of the SQFT paper); the largest is rank, and merge.ranks or merge.rank_search cut the adapter",
    )
    elastic_sampling: Literal["random", "sandwich"] = Field(
        "random",
        description="how steps choose among elastic_ranks: random; or sandwich, where of three steps one has the"
        " largest in all linears, one the smallest, and one draws",
    )
    target_modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names, last parts of names or globs of the linears to adapt; every pruned one if left out"
    )
    also: list[Literal["norms", "biases"]] = Field(
        [],
        description="what is trained beside the adapters: norms (weights and biases of all norms of the decoder),"
        " biases (of the adapted linears)",
    )
    also_learning_rate: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="the peak of the learning rate of what `also` names; learning_rate if left out"
    )
    dataset: TrainingData = Field(
        description="the rows to train on: Alpaca, chat, prompt and completion, or text; or a list of such data sets,"
        " each with a weight: a mixture"
    )
    eval_dataset: TrainingDataset | None = Field(
        None, description="held-out rows, whose loss is measured during training"
    )
    eval_steps: Count | None = Field(
        None, description="optimiser steps between two held-out losses; a tenth of the run if left out"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="with eval_dataset: which adapter is kept, that of the lowest held-out loss or the last one"
    )
    sequence_length: SequenceLength = Field(512, description="tokens per sample, at most")
    packing: bool = Field(
        False,
        description="whether several rows share a sample; they do not see each other, and each has positions from 0",
    )
    overlong: Literal["truncate", "refuse"] = Field(
        "truncate",
        description="what happens to rows of more than sequence_length tokens; truncated ones are counted in the log",
    )
    append_eos: Literal["auto"] | bool = Field(
        "auto",
        description="whether the end token follows the last answer of a row; auto appends it where the chat template"
        " ends the answer with no token that ends generation",
    )
    ignore_fields: list[str] = Field(
        [],
        description="fields of rows, or of turns, to leave out; others that are not used are refused unless harmless",
    )
    batch_size: BatchSize | None = Field(
        None, description="samples per optimiser step, over all processes; 32 if left out"
    )
    batch_tokens: Count | None = Field(
        None, description="tokens per optimiser step, in samples of full length; replaces batch_size"
    )
    micro_batch_size: BatchSize | None = Field(
        None, description="samples per forward pass of a process; its whole share of the batch if left out"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = Field(
        default_factory=lambda section: adapters.METHODS[section["method"]].learning_rate,
        description=f"the peak of AdamW's learning rate; that of the method if left out ({RATES}), from trials with a"
        " small model: large ones need less",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls to zero after the warm-up; with constant it does not fall"
    )
    warmup: Annotated[float, Field(ge=0, le=10**9)] = Field(
        0.0, description="how many steps the learning rate rises for; a number below 1 is a fraction of all steps"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="AdamW's decay of the adapters; what `also` names does not decay"
    )
    max_grad_norm: Annotated[float, Field(ge=0, le=10**6)] = Field(
        1.0, description="gradients of a larger norm are scaled down to it; 0 turns this off"
    )
    epochs: Annotated[float, Field(gt=0, le=10**6)] | None = Field(
        None, description="passes over the data; 3 if max_steps and max_tokens are left out too"
    )
    max_steps: Count | None = Field(None, description="optimiser steps to train for; replaces epochs")
    max_tokens: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="tokens to train on, rounded to whole optimiser steps; replaces epochs"
    )
    repeat: bool = Field(
        False, description="whether the data start again if they end before max_tokens, or before max_steps of a stream"
    )
    dtype: Dtype | None = Field(
        None, description="the dtype of the frozen model while training; the top-level dtype if left out"
    )
    gradient_checkpointing: bool = Field(False, description="whether backward computes each block's activations again")
    chunked_loss: bool = Field(
        True, description="whether the loss is computed for some tokens at a time, so that not all logits are in memory"
    )
    distill: Distill | None = Field(None, description="knowledge distillation from a teacher; not done if left out")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="with several processes: ddp gives each the whole model, fsdp shards the frozen weights (FSDP2)",
    )
    save_steps: Count | None = Field(
        None, description="optimiser steps between two checkpoints; a twentieth of the run if left out"
    )
    keep_checkpoints: Count = Field(2, description="how many of the latest checkpoints stay during training")
    logging_steps: Count = Field(1, description="optimiser steps between two lines of the log")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="where the training's figures go besides training_log.jsonl"
    )

    @classmethod
    def option_classes(cls) -> Classes:
        """The options of all formulations; the first one of a method goes by the method's name."""
        return {
            f"{method} ({name})" if place else method: formulation.options
            for method, row in adapters.METHODS.items()
            for place, (name, formulation) in enumerate(row.formulations.items())
        }

    @property
    def own_options(self) -> type[Options]:
        """The options of the formulation."""
        return self.computed.options

    @property
    def computed(self) -> adapters.Formulation:
        """How the method is computed: by the formulation that is named, else by its first."""
        return adapters.METHODS[self.method].formulation(self.formulation)

    @property
    def samples_per_step(self) -> int:
        """Samples per optimiser step."""
        return samples_per_step(self.batch_size, self.batch_tokens, self.sequence_length)

    @property
    def samples_per_forward(self) -> int:
        """Samples per forward pass of one process."""
        step = self.samples_per_step
        return self.micro_batch_size or (step if step % processes.count() else step // processes.count())

    @property
    def resolved_init(self) -> str:
        """How lora_A starts: as asked, else as the method's paper does it."""
        return self.init or adapters.METHODS[self.method].init

    def faults(self) -> Iterator[Fault]:
        """What does not fit the method, the amounts, and what would be without effect."""
        method = adapters.METHODS[self.method]
        if self.formulation is not None and self.formulation not in method.formulations:
            names = list(method.formulations)
            remedy = f"{nearest(self.formulation, names)}; `lors methods` lists them"
            yield Fault("formulation", f"a formulation of {self.method}: {', '.join(names)}", remedy)
            return  # the options and the base are those of the formulation
        yield from self._method_faults(method)
        yield from self.start_faults()
        yield from self._amount_faults()
        yield from self._idle_faults(method)

    def _method_faults(self, method: adapters.Method) -> Iterator[Fault]:
        name = f"{self.method} ({self.computed.class_name})"
        yield from self.option_faults(self.option_classes(), name)
        for key, expected, remedy in self.options().faults():
            yield Fault(key, expected, remedy, drop=(key,))
        bases = self.computed.bases
        if self.base not in bases:
            having = ", ".join(label for label, row in adapters.METHODS.items() if self.base in row.formulation().bases)
            expected = f"base: {' or '.join(bases)} with {name}; {self.base} is for {having}"
            yield Fault("base", expected, f"write base: {bases[0]}, or method: {having}")
        if self.option("quantization_aware") and self.base != "int4":
            expected = "base: int4 with quantization_aware: a grid to round to is a quantised model's"
            yield Fault("quantization_aware", expected, "write base: int4, and quantise the model first")
        if self.base == "int4" and self.option("adapter_checkpointing") is True:
            yield without_effect("adapter_checkpointing", "on base: int4 backward computes such tensors again anyway")
        yield from elastic.faults(self.rank, self.elastic_ranks, self.method, sampled=self.changed("elastic_sampling"))
        if self.resolved_init != "random" and not method.low_rank:
            expected = f"init: random, because the update of {self.method} is not a low-rank product"
            yield Fault("init", expected, "write init: random", drop=("init",))

    def _amount_faults(self) -> Iterator[Fault]:
        lengths = tuple(name for name in ("epochs", "max_steps", "max_tokens") if getattr(self, name))
        if len(lengths) > 1:
            expected = f"only one of epochs, max_steps and max_tokens, not {' and '.join(lengths)}"
            yield Fault(lengths[-1], expected, drop=lengths)
        mixed, streams = bool(self.weights), any(source.streaming for source in self.sources.values())
        if (mixed or streams) and not (self.max_steps or self.max_tokens):
            reason = "a mixture has no epochs" if mixed else "the length of an epoch of a stream is not known"
            instead = "write epochs: null, and" if self.epochs else "add"
            remedy = f"{instead} max_steps: N, or max_tokens: N"
            yield Fault("max_steps", f"max_steps or max_tokens, because {reason}", remedy)
        yield from self.mixture_faults()
        if self.eval_dataset and self.eval_dataset.streaming:
            expected = "an eval_dataset without streaming: it is read as a whole, so give it a limit"
            yield Fault("eval_dataset.streaming", expected, "write streaming: false, and add limit: ROWS")
        if len(set(self.also)) < len(self.also):
            yield Fault("also", "each of norms and biases once", drop=("also",))
        if self.batch_size and self.batch_tokens:
            yield Fault("batch_tokens", "batch_size or batch_tokens, not both", drop=("batch_size", "batch_tokens"))
        if self.batch_tokens and self.batch_tokens < self.sequence_length:
            expected = f"batch_tokens of at least sequence_length ({self.sequence_length})"
            yield Fault("batch_tokens", expected, "write a larger number, or a smaller sequence_length")
        elif self.samples_per_step % self.samples_per_forward:
            expected = f"a micro_batch_size that divides the batch of {self.samples_per_step} samples"
            step, forward = self.samples_per_step, self.samples_per_forward
            pairs = [(n, step // n) for n in range(1, math.isqrt(step) + 1) if step % n == 0]
            divisor = max(n for pair in pairs for n in pair if n < forward)
            yield Fault("micro_batch_size", expected, f"write micro_batch_size: {divisor}, or another batch_size")

    def _idle_faults(self, method: adapters.Method) -> Iterator[Fault]:
        for key in ("rank", "alpha"):
            if self.changed(key) and not method.has_rank:
                yield without_effect(key, f"{self.method} trains the whole update", "choose another method")
        if self.changed("init_steps") and self.resolved_init == "random":
            yield without_effect("init_steps", "init: random does not look at data", "choose another init")
        if self.changed("also_learning_rate") and not self.also:
            yield without_effect("also_learning_rate", "also names nothing", "add also: [norms]")
        for key in ("eval_steps", "keep"):
            if self.changed(key) and not self.eval_dataset:
                yield without_effect(key, "there is no eval_dataset", "add eval_dataset: PATH")

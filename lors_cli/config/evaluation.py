"""The eval section."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from lors_cli.config.fields import (
    BY_SHAPE,
    ONE,
    SEVERAL,
    AsChoice,
    BatchSize,
    Count,
    Dataset,
    Fault,
    PathText,
    Section,
    Seed,
    SequenceLength,
    without_effect,
    wrong,
)
from lors_cli.data import formats
from lors_cli.evaluation import items
from lors_cli.evaluation.presets import PRESETS, SAMPLES
from lors_cli.options import OneOf


class MeasuredDataset(Dataset):
    """The rows to measure perplexity on. A plain string is its `path`."""

    format: Annotated[str, OneOf(formats.TRAINING)] = Field(
        "text", description="text, or as in training rows of instructions, one a sample"
    )


class Perplexity(Section):
    """Perplexity on consecutive windows of the joined rows of text, or on rows of instructions, one a sample."""

    dataset: MeasuredDataset = Field(description="the rows of text or of instructions to measure on")
    sequence_length: SequenceLength = Field(2048, description="tokens per window; of a row, at most")
    samples: Count | None = Field(
        None, description="how many windows or rows are measured at most, from the start; all if left out"
    )
    sampling: Literal["first", "random"] = Field(
        "first", description="which rows of instructions are measured: the first ones, or `samples` of them at random"
    )
    sampling_seed: Seed = Field(
        0, description="of random; not the config's seed, so that runs with different seeds measure the same rows"
    )
    prompt_tokens: bool = Field(
        False, description="of rows of instructions: whether prompts count too, or only what training would learn"
    )
    ignore_fields: list[str] = Field(
        [], description="fields of rows of instructions, or of their turns, to leave out, as in train"
    )

    def faults(self) -> Iterator[Fault]:
        """What is without effect."""
        if self.dataset.format == "text":
            for key in ("sampling", "sampling_seed", "prompt_tokens", "ignore_fields"):
                if self.changed(key):
                    reason = "format: text is measured on consecutive windows of the joined rows"
                    yield without_effect(key, reason, "set dataset.format to alpaca, chat or completion")
        elif self.sampling == "random" and self.samples is None:
            yield Fault("samples", "samples with sampling: random", "add samples: N", drop=("sampling",))
        elif self.changed("sampling_seed") and self.sampling != "random":
            yield without_effect("sampling_seed", "sampling: first draws nothing", "write sampling: random")


class NamedPerplexity(Perplexity):
    """One of several perplexities, which results call by its name."""

    name: Annotated[str, Field(pattern=f"^{items.PART}$")] = Field(
        description="in a list: what results call it; letters, digits and _ . -"
    )


class Samples(Section):
    """Prompts that every model answers greedily, side by side in results.md, results.json and the report."""

    PROSE = frozenset({"prompts"})
    prompts: Annotated[list[str], Field(min_length=1)] = Field(
        list(SAMPLES),
        description="texts; each is a user's turn for a tokenizer with a chat template, and a beginning for others",
    )
    max_new_tokens: Count = Field(64, description="tokens of an answer, at most")


class Eval(Section):
    """dense, pruned, aligned, tuned or merged models -> <output_dir>/eval"""

    PROSE = frozenset({"system"})
    models: Annotated[list[str], Field(min_length=1)] = Field(
        ["dense", "pruned", "merged"],
        description="what is measured: dense (always first), pruned, aligned, tuned (the pruned model with its"
        " adapter), merged, or any other model",
    )
    perplexity: (
        Annotated[
            Annotated[Perplexity, Tag(ONE)] | Annotated[list[NamedPerplexity], Field(min_length=1), Tag(SEVERAL)],
            BY_SHAPE,
            AsChoice(),
        ]
        | None
    ) = Field(
        None,
        description="the text or the rows to measure perplexity on, or a list of such, each with a name; perplexity is"
        " not measured if left out",
    )
    preset: Annotated[str, OneOf(PRESETS)] | None = Field(
        None, description="the paper whose benchmarks are run; only `tasks` are run if left out"
    )
    tasks: list[str] = Field(
        [], description="tasks to run besides those of the preset: names of lm-eval's tasks, or of tasks in task_dir"
    )
    shots: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="how many examples each prompt of `tasks` has; as each task says if left out"
    )
    task_dir: PathText | None = Field(
        None, description="a directory with YAML files of lm-eval tasks; NAME_local in it replaces NAME of a preset"
    )
    data_dir: PathText | None = Field(
        None, description="the directory to which the data_files of these tasks are relative; task_dir if left out"
    )
    samples: Samples | None = Field(
        None, description="what the models say to a few prompts; {} asks five that come with lors, none if left out"
    )
    chat_template: bool = Field(
        False,
        description="whether the prompts of tasks are turns in the chat template of the tokenizer, as lm-eval's"
        " apply_chat_template puts them",
    )
    system: str | None = Field(
        None, description="what the system says first, in samples, and with chat_template also in tasks"
    )
    limit: Count | None = Field(None, description="how many items of each task are measured at most; all if left out")
    batch_size: BatchSize | Literal["auto"] = Field(
        "auto", description="how many prompts lm-eval answers at once; auto finds what fits into memory"
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="what runs the model for tasks; vllm has to be installed. Perplexity always uses transformers",
    )
    offline: bool = Field(
        False, description="whether the network is never used; what is missing is named before the work begins"
    )
    allow_code_execution: bool | Literal["sandboxed"] = Field(
        False,
        description="whether the programs that models write may run, which humaneval needs; sandboxed: only where"
        " Linux's namespaces enclose them, see humaneval.md",
    )

    trust_task_code: bool = Field(
        False, description="whether tasks of task_dir may run Python code, as their !function and their templates ask"
    )

    @model_validator(mode="after")
    def _check(self) -> "Eval":
        if self.perplexity is None and not self.tasks and not self.preset and self.samples is None:
            expected = "perplexity, preset, tasks or samples; without them there is nothing to measure"
            raise wrong("", expected, "add perplexity: {dataset: ...}, preset: NAME or tasks: [NAME, ...]")
        return self

    @property
    def perplexities(self) -> dict[str, Perplexity]:
        """What perplexity is measured on, by the names that results have; the only one has none."""
        if isinstance(self.perplexity, list):
            return {one.name: one for one in self.perplexity}
        return {"": self.perplexity} if self.perplexity else {}

    def faults(self) -> Iterator[Fault]:
        """Perplexities whose names are one for some file systems, and chat templates that nothing uses."""
        if self.chat_template and not self.tasks and not self.preset:
            reason = "it is about the prompts of tasks, of which there are none; samples use a chat template anyway"
            yield without_effect("chat_template", reason, "add tasks, or leave it out")
        if self.system is not None and not self.chat_template and (self.tasks or self.preset or not self.samples):
            reason = "tasks have no turns without chat_template: true"
            yield without_effect("system", reason, "set chat_template: true, or leave it out")
        names = [one.name.casefold() for one in self.perplexity] if isinstance(self.perplexity, list) else []
        for number, name in enumerate(names):
            if name in names[:number]:
                expected = f"another name than that of perplexity[{names.index(name)}], also in its small letters"
                yield Fault(f"perplexity.{number}.name", expected, "give each its own name")

"""The eval section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lors_cli.config.fields import BatchSize, Count, Dataset, PathText, Section, SequenceLength, wrong
from lors_cli.evaluation.presets import PRESETS
from lors_cli.options import OneOf


class Perplexity(Section):
    """Perplexity on consecutive windows of the joined rows."""

    dataset: Dataset = Field(description="the rows of text to measure on")
    sequence_length: SequenceLength = Field(2048, description="tokens per window")
    samples: Count | None = Field(None, description="how many windows are measured at most; all if left out")


class Eval(Section):
    """dense, pruned, aligned, tuned or merged models -> <output_dir>/eval"""

    models: Annotated[list[str], Field(min_length=1)] = Field(
        ["dense", "pruned", "merged"],
        description="what is measured: dense (always first), pruned, aligned, tuned (the pruned model with its"
        " adapter), merged, or any other model",
    )
    perplexity: Perplexity | None = Field(
        None, description="the text to measure perplexity on; perplexity is not measured if left out"
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
        if self.perplexity is None and not self.tasks and not self.preset:
            expected = "perplexity, preset or tasks; without them there is nothing to measure"
            raise wrong("", expected, "add perplexity: {dataset: ...}, preset: NAME or tasks: [NAME, ...]")
        return self

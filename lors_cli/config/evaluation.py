"""The eval section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lors_cli.config.fields import Count, Dataset, OneOf, PathText, Section, wrong
from lors_cli.evaluation.presets import PRESETS


class Perplexity(Section):
    """Perplexity on consecutive windows of the joined rows."""

    dataset: Dataset = Field(description="text rows")
    sequence_length: Annotated[int, Field(ge=2)] = Field(2048, description="tokens per window")
    samples: Count | None = Field(None, description="at most so many windows; all of the text if left out")


class Eval(Section):
    """any of these models -> <output_dir>/eval"""

    models: Annotated[list[str], Field(min_length=1)] = Field(
        ["dense", "pruned", "merged"],
        description="dense (measured first), pruned, aligned, tuned (pruned with its adapter), merged, or any model",
    )
    perplexity: Perplexity | None = Field(None, description="not measured if left out")
    preset: Annotated[str, OneOf(PRESETS)] | None = Field(
        None, description="a paper's benchmarks: " + ", ".join(PRESETS)
    )
    tasks: list[str] = Field([], description="lm-eval task names, built-in or from task_dir; beside those of a preset")
    shots: Annotated[int, Field(ge=0)] | None = Field(
        None, description="examples in the prompts of tasks; the number of each task itself if left out"
    )
    task_dir: PathText | None = Field(
        None, description="a directory of lm-eval task YAML files; NAME_local in it replaces NAME of a preset"
    )
    data_dir: PathText | None = Field(
        None, description="the directory that their data_files are relative to; task_dir if left out"
    )
    limit: Count | None = Field(None, description="at most so many items per task")
    batch_size: Count | Literal["auto"] = Field(
        "auto", description="prompts at once in lm-eval; auto finds what the memory allows"
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="what runs the tasks; vllm must be installed. Perplexity always uses transformers"
    )
    offline: bool = Field(False, description="never ask a network; what is missing is named before the work begins")
    allow_code_execution: bool = Field(False, description="run the programs that models write, as humaneval does")

    @model_validator(mode="after")
    def _check(self) -> "Eval":
        if self.perplexity is None and not self.tasks and not self.preset:
            expected = "perplexity, preset or tasks; without them there is nothing to measure"
            raise wrong("", expected, "add perplexity: {dataset: ...}, preset: NAME or tasks: [NAME, ...]")
        return self

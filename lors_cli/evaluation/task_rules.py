"""What the file of a task may say when its authors are not trusted: the keys that are data, and their values.

They are those of lm-eval's ``TaskConfig`` and ``GroupConfig``. What is left out runs code, or has lm-eval, transformers
or datasets fetch code or open files that no task needs: ``class``, ``custom_dataset``, ``hf_evaluate``, metrics that
the library evaluate downloads, ``custom_generate`` among the arguments of generation, a prompt in a file, and so on.
"""

import pkgutil
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from datasets import packaged_modules
from lm_eval.api import metrics, registry
from lm_eval.api.instance import OutputType
from lm_eval.api.samplers import SAMPLER_REGISTRY
from lm_eval.filters import selection
from lm_eval.prompts import PROMPT_REGISTRY
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from lors_cli.evaluation import items
from lors_cli.evaluation.task_files import LOCAL_FORMATS
from lors_cli.options import OneOf

BUILDERS = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}  # of datasets, such as sql
REGISTERED = (metrics, selection)  # modules that fill lm-eval's registries when they are imported
SHOWN = 100  # characters of a wrong value
HUB = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


class Function(str):
    """The name of a function that a task has Python call, where it stands, and whether it is lm-eval's own."""

    known: bool
    file: Path
    line: int


def _name(text: str) -> str:
    if not items.is_task(text):
        raise ValueError(f"a name with {items.TASK_NAMES}")
    return text


def _file(text: str) -> str:
    if "://" in text or "::" in text or text.startswith(("/", "~")) or ".." in text.split("/") or "\\" in text:
        raise ValueError("data files are named relative to eval.data_dir, and lie in it")
    return text


def _data_set(text: str) -> str:
    if text not in LOCAL_FORMATS and (text in BUILDERS or not HUB.fullmatch(text) or text.endswith(".py")):
        raise ValueError(f"a data set is one of {', '.join(LOCAL_FORMATS)} with data_files, or one of the hub")
    return text


def _prompt(text: str) -> str:
    if text.partition(":")[0] not in PROMPT_REGISTRY:
        raise ValueError(f"the prompts that need no other package or file are {', '.join(PROMPT_REGISTRY)}")
    return text


Name = Annotated[str, AfterValidator(_name)]
Number = int | float
Code = InstanceOf[Function]
File = Annotated[str, AfterValidator(_file)]
Files = File | list[File]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _More(BaseModel):
    """What a metric or a filter is given besides is plain data."""

    model_config = ConfigDict(extra="allow", strict=True)


class _DataSet(_Keys):
    data_files: Files | dict[str, Files] | None = None
    data_dir: File | None = None
    revision: str | None = None
    field: str | None = None
    sep: str | None = None
    delimiter: str | None = None
    quotechar: str | None = None
    header: int | Literal["infer"] | None = None
    names: list[str] | None = None
    column_names: list[str] | None = None
    skiprows: int | None = None
    encoding: str | None = None
    sample_by: str | None = None
    keep_linebreaks: bool | None = None
    keep_in_memory: bool | None = None
    trust_remote_code: Literal[False] | None = None


class _Generation(_Keys):
    until: str | list[str] | None = None
    max_gen_toks: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool | None = None
    temperature: Number | Annotated[str, Field(pattern=r"^[0-9.eE+-]+$")] | None = None
    top_p: Number | None = None
    top_k: int | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repetition_penalty: Number | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: Number | None = None
    early_stopping: bool | None = None


class _Metric(_More):
    metric: Name
    aggregation: Annotated[str, OneOf(list(registry.aggregation_registry))] | Code | None = None
    higher_is_better: bool | None = None
    hf_evaluate: Literal[False] = False


class _Step(_More):
    function: Annotated[str, OneOf([name for name in registry.filter_registry if name != "custom"])]


class _Filter(_Keys):
    name: Name
    filter: list[_Step]


class _Metadata(_More):
    version: Number | Name | date | None = None


class _Examples(_Keys):
    sampler: Annotated[str, OneOf(list(SAMPLER_REGISTRY))] = "default"
    split: str | None = None
    process_docs: Code | None = None
    fewshot_indices: list[int] | None = None
    samples: list[dict[str, Any]] | Code | None = None
    doc_to_text: str | int | None = None
    doc_to_choice: str | list[Any] | dict[Any, Any] | None = None
    doc_to_target: str | int | list[Any] | None = None
    gen_prefix: str | None = None
    fewshot_delimiter: str | None = None
    target_delimiter: str | None = None


class _Task(_Keys):
    task: Name | None = None
    task_alias: str | None = None
    tag: Name | list[Name] | None = None
    task_list: Any = None  # lm-eval leaves it out
    dataset_path: Annotated[str, AfterValidator(_data_set)] | None = None
    dataset_name: str | None = None
    dataset_kwargs: _DataSet | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    process_docs: Code | None = None
    doc_to_text: str | int | None = None
    doc_to_target: str | int | list[Any] | None = None
    doc_to_choice: str | list[Any] | dict[Any, Any] | None = None
    doc_to_image: str | list[str] | None = None
    doc_to_audio: str | list[str] | None = None
    unsafe_code: bool = False
    process_results: Code | None = None
    use_prompt: Annotated[str, AfterValidator(_prompt)] | None = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot_config: _Examples | None = None
    num_fewshot: int | None = None
    metric_list: list[_Metric] | None = None
    output_type: OutputType = "generate_until"
    generation_kwargs: _Generation | None = None
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 1
    filter_list: list[_Filter] | None = None
    should_decontaminate: bool = False
    doc_to_decontamination_query: str | None = None
    gen_prefix: str | None = None
    metadata: _Metadata | Number | str | list[Any] | None = None

    @field_validator("metric_list")
    @classmethod
    def _known_metrics(cls, metrics: list[_Metric] | None, info: ValidationInfo) -> list[_Metric] | None:
        """A metric that lm-eval does not have is looked up on the hub, as a program, unless a function gives it."""
        known = list(registry.metric_registry)
        if unknown := [
            one.metric for one in metrics or [] if one.metric not in known and not info.data.get("process_results")
        ]:
            raise ValueError(f"{unknown[0]} is none of the metrics of lm-eval: {', '.join(known)}")
        return metrics


class _Aggregate(_Keys):
    metric: Name
    filter_list: Name | list[Name] | None = None
    aggregation: Literal["mean"] = "mean"
    weight_by_size: bool = True


class _Overriding(_Task):
    """What a group changes of its tasks, which must not unsay what lm-eval's own tasks say of their code."""

    unsafe_code: Literal[True] = True
    process_results: Code = Function()
    group: Name | None = None
    group_alias: str | None = None
    aggregate_metric_list: _Aggregate | list[_Aggregate] | None = None
    task: "Name | list[Name | _Overriding] | None" = None  # type: ignore[assignment]


def faults(content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a task's or a group's file says beyond data: the key, what it has there, and what may stand there."""
    try:
        (_Overriding if "group" in content else _Task).model_validate(content)
    except ValidationError as error:
        found: dict[str, list[Any]] = {}
        for one in error.errors():
            found.setdefault(_key(content, one["loc"]), []).append(one)
        for key, errors in found.items():
            if not any(other.startswith(f"{key}." if key else "") and other != key for other in found):
                rules = [one["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for one in errors]
                forbidden = errors[0]["type"] == "extra_forbidden"
                rule = "no such key, which is none of a task's data" if forbidden else " or ".join(dict.fromkeys(rules))
                yield key, repr(errors[-1]["input"])[:SHOWN], rule


def _key(content: Any, loc: tuple[Any, ...]) -> str:
    """Where an error is in the content; pydantic's place has the alternatives of types in it too."""
    path = []
    for part in loc:
        if (isinstance(content, dict) and part in content) or (isinstance(content, list) and isinstance(part, int)):
            content = content[part]
            path.append(str(part))
    return ".".join(path)

"""The stages of a run, in their order: what each reads, and the folder of the output directory that it writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

# What eval.models calls the outputs of a run, and the stage that makes each.
EVALUATED = {"pruned": "prune", "aligned": "align", "quantized": "quantize", "tuned": "train", "merged": "merge"}


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: of its command and of its section in a config.
        folder: what it writes below the output directory.
        reads: where each of its inputs comes from: the first of the config's keys that has a value, or the first stage
            that the config has a section for. The last one counts in any case.
        shared: whether several processes can do it together.
        less_memory: the settings that decide how much memory it needs.

    """

    name: str
    folder: str
    reads: Mapping[str, tuple[str, ...]]
    shared: bool
    less_memory: str

    def output(self, directory: str | Path) -> Path:
        """What it writes in the run whose output directory is `directory`."""
        return Path(directory) / self.folder


# How keys end that name an adapter.
ADAPTERS = (".adapter", ".resume_from")
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prune",
            folder="pruned",
            reads={"model": ("prune.input", "model")},
            shared=True,
            less_memory="prune.calibration.samples or sequence_length, or set prune.states: disk",
        ),
        Stage(
            "align",
            folder="aligned",
            reads={"pruned": ("align.input", "prune"), "teacher": ("align.distill.teacher",)},
            shared=True,
            less_memory="align.micro_batch_size or sequence_length, or set align.gradient_checkpointing: true",
        ),
        Stage(
            "quantize",
            folder="quantized",
            reads={"pruned": ("quantize.input", "align", "prune", "model")},
            shared=True,
            less_memory="quantize.calibration.samples or sequence_length, or set quantize.states: disk",
        ),
        Stage(
            "train",
            folder="adapter",
            reads={
                "pruned": ("train.input", "quantize", "align", "prune"),
                "teacher": ("train.distill.teacher",),
                "adapter": ("train.adapter",),
                "resume_from": ("train.resume_from",),
            },
            shared=True,
            less_memory="train.micro_batch_size or sequence_length, or set train.merge_cache: off,"
            " gradient_checkpointing: true or base: packed (lora: nf4)",
        ),
        Stage(
            "recover",
            folder="recovered",
            reads={
                "model": ("model",),
                "pruned": ("recover.input", "train.input", "quantize", "align", "prune"),
                "adapter": ("recover.adapter", "train"),
            },
            shared=False,
            less_memory="what else runs on the machine",
        ),
        Stage(
            "merge",
            folder="merged",
            reads={
                "pruned": ("merge.input", "train.input", "quantize", "align", "prune"),
                "adapter": ("merge.adapter", "train"),
            },
            shared=False,
            less_memory="what else runs on the machine (a merge holds one shard of the model)",
        ),
        Stage(
            "eval",
            folder="eval",
            reads={
                **{name: (stage,) for name, stage in EVALUATED.items()},
                "dense": ("model",),
                "pruned": ("align.input", "train.input", "prune"),
            },
            shared=True,
            less_memory="eval.batch_size or eval.perplexity.sequence_length",
        ),
    )
}
# A recovered adapter is merged into the original.
READS_RECOVERED = {"pruned": ("model",), "adapter": ("recover",)}


def merges_recovered(config: Mapping[str, Any]) -> bool:
    """Whether the merge stage of a config, as plain data, takes what recover made, and the original."""
    merge = config.get("merge") or {}
    return config.get("recover") is not None and not merge.get("input") and not merge.get("adapter")


def will_make(stages: Sequence[str], maker: str, reader: str) -> bool:
    """Whether the stage `maker` is one of the `stages` of a run, before `reader` if that is one too."""
    before = stages[: stages.index(reader)] if reader in stages else stages
    return maker in before


def place(config: "BaseModel", reader: str, name: str) -> tuple[str, str | None]:
    """Where the stage `reader` of a config reads a `name` of its `reads`: a stage; or a key, and what is written there.

    For eval, `name` may also be a model that `eval.models` names, which is then at that key.
    """
    merges = reader == "merge" and merges_recovered(config.model_dump(include={"recover", "merge"}))
    reads = READS_RECOVERED if merges else STAGES[reader].reads
    if name not in reads:
        return f"{reader}.models", name
    for key in reads[name]:
        if key in STAGES:
            if key == reads[name][-1] or getattr(config, key) is not None:
                break
        elif (value := _value(config, key)) is not None:
            original = name == "teacher" and value == "dense"
            return key, str(getattr(config, "model")) if original else value  # noqa: B009 - of any config
    return key, None


def named(config: "BaseModel", stages: Sequence[str], reader: str) -> Iterator[tuple[str, str]]:
    """The models and adapters that a stage reads and that none of the `stages` makes before: their keys and names."""
    section = getattr(config, reader)
    models: list[str] = getattr(section, "models", [])
    names = ["dense", *models] if reader == "eval" else list(STAGES[reader].reads)
    made = [str(stage.output(_value(config, "output_dir") or "")) for stage in STAGES.values()]
    for name in names:
        key, value = place(config, reader, name)
        if value is not None and not (value in made and will_make(stages, list(STAGES)[made.index(value)], reader)):
            yield key, value


def _value(config: object, key: str) -> str | None:
    for part in key.split("."):
        config = getattr(config, part, None)
    return None if config is None else str(config)

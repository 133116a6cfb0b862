"""The stages of a run, in their order, and the folder of the output directory that each of them writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: of its command and of its section in a config.
        folder: what it writes below the output directory.
        shared: whether several processes can do it together.
        less_memory: the settings that decide how much memory it needs.

    """

    name: str
    folder: str
    shared: bool
    less_memory: str

    def output(self, directory: str | Path) -> Path:
        """What it writes in the run whose output directory is `directory`."""
        return Path(directory) / self.folder


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prune",
            folder="pruned",
            shared=True,
            less_memory="prune.calibration.samples or sequence_length, or set prune.states: disk",
        ),
        Stage(
            "align",
            folder="aligned",
            shared=True,
            less_memory="align.micro_batch_size or sequence_length, or set align.gradient_checkpointing: true",
        ),
        Stage(
            "train",
            folder="adapter",
            shared=True,
            less_memory="train.micro_batch_size or sequence_length, or set train.merge_cache: off,"
            " gradient_checkpointing: true or base: packed (lora: nf4)",
        ),
        Stage("recover", folder="recovered", shared=False, less_memory="what else runs on the machine"),
        Stage(
            "merge",
            folder="merged",
            shared=False,
            less_memory="what else runs on the machine (a merge holds one shard of the model)",
        ),
        Stage("eval", folder="eval", shared=True, less_memory="eval.batch_size or eval.perplexity.sequence_length"),
    )
}
# What eval.models calls the outputs of a run, and the stage that makes each.
EVALUATED = {"pruned": "prune", "aligned": "align", "tuned": "train", "merged": "merge"}

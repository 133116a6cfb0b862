"""transformers' Trainer, made to save and resume adapters only, and to stop at a loss that is not finite."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lors_cli.adapters import Adapter
from lors_cli.artifacts import adapter_file
from lors_cli.errors import LorsError
from lors_cli.training.merging import Merging

CHECKPOINTS = "checkpoints"
COMPLETE = "complete"  # marks a checkpoint whose files are all there


class AdapterTrainer(Trainer):  # type: ignore[misc]
    """Trains the adapters of a frozen model.

    Args:
        adapters: by the names of their linears.
        merging: told of micro-batches and steps.
        log_file: JSON lines, one for each logged step.
        advance: called after each optimiser step with a few words about it.
        options: of Trainer.

    """

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        merging: Merging,
        log_file: Path,
        advance: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.adapters, self.merging = adapters, merging
        self.finite: Tensor | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self, log_file, advance))

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward; remembers, on the device, whether the loss was finite."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.finite = loss.isfinite() if self.finite is None else self.finite & loss.isfinite()
        self.merging.after_micro_batch(inputs["input_ids"].numel())
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapters alone."""
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        modules = {module: adapter.tensors() for module, adapter in self.adapters.items()}
        adapter_file.write_tensors(modules, directory / adapter_file.WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapters alone."""
        saved = adapter_file.read_tensors(Path(resume_from_checkpoint) / adapter_file.WEIGHTS)
        with torch.no_grad():
            for module, adapter in self.adapters.items():
                for name, tensor in adapter.tensors().items():
                    tensor.copy_(saved[module][name])


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes the log, reports progress, marks complete checkpoints, stops at a loss that is not finite."""

    def __init__(self, trainer: AdapterTrainer, log_file: Path, advance: Callable[[str], None]) -> None:
        self.trainer, self.log_file, self.advance, self.words = trainer, log_file, advance, ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # what an interrupted run logged after its last checkpoint will be logged again
        self.log_file.write_text("".join(json.dumps(line) + "\n" for line in state.log_history))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        with self.log_file.open("a") as file:
            file.write(json.dumps({**logs, "step": state.global_step}) + "\n")
        self.words = ", ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "eval_loss") if key in logs) or self.words

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.merging.before_step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        finite, self.trainer.finite = self.trainer.finite, None
        if finite is not None and not bool(finite):
            raise LorsError(
                f"the loss became NaN or infinite at step {state.global_step}; nothing was published. Use a lower"
                " train.learning_rate, a warm-up, or dtype: float32, and check the data"
            )
        self.advance(self.words)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(directory: Path) -> Path | None:
    """The latest complete checkpoint under `directory`; those that a crash left incomplete are removed."""
    found = {int(path.name.rsplit("-", 1)[1]): path for path in directory.glob("checkpoint-*") if path.is_dir()}
    for step in sorted(found, reverse=True):
        if (found[step] / COMPLETE).is_file():
            return found[step]
        shutil.rmtree(found[step])
    return None

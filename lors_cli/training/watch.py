"""What accompanies a training: its log, its progress, and when it has to stop."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lors_cli import numerics, processes
from lors_cli.errors import DivergedError
from lors_cli.models import memory
from lors_cli.stopping import Stop
from lors_cli.training import checkpoint, elastic, finite
from lors_cli.training.trainer import AdapterTrainer

log = logging.getLogger(__name__)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Logs, reports progress, seeds each step, evaluates after the last one, stops at NaN or when asked to.

    Args:
        trainer: what it accompanies.
        log_file: JSON lines, one for each logged step; of several processes the first writes it.
        section: the name of the config's section, for messages.
        advance: called after each optimiser step with a few words about it.
        stop: whether a scheduler has asked for an end.

    """

    def __init__(
        self, trainer: AdapterTrainer, log_file: Path, section: str, advance: Callable[..., None], stop: Stop
    ) -> None:
        self.trainer, self.log_file, self.section = trainer, log_file, section
        self.advance, self.stop = advance, stop
        self.losses: dict[str, float] = {}
        self.tokens_before = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.compute_steps(args, args.max_steps)  # a checkpoint brings the intervals of the run that wrote it
        self.trainer.begin()
        self.tokens_before = self.trainer.tokens
        if processes.rank() == 0:
            # what an interrupted run logged after its last checkpoint will be logged again
            self.log_file.write_text(
                "".join(json.dumps(line, allow_nan=False, sort_keys=True) + "\n" for line in state.log_history)
            )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Write what was logged.

        Raises:
            DivergedError: a loss is not finite.

        """
        for key in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(key, 0.0)):  # of the held-out rows, as each step's own loss was looked at
                raise DivergedError(f"step {state.global_step}: {key} is {logs[key]}; check the data and the model")
        line = state.log_history[-1]  # the logs with their step
        line["tokens"] = self.trainer.tokens  # checkpoints keep it, for the log of a resumed run
        if not self.losses:  # the first line, also after a resumption, which may compute in another way
            line["numerics"] = {**numerics.in_force(), **self.trainer.in_force}
        if processes.rank() == 0:
            with self.log_file.open("a") as file:
                file.write(json.dumps(line, allow_nan=False, sort_keys=True) + "\n")
        self.losses |= {key: logs[key] for key in ("loss", "eval_loss") if key in logs}
        self._say(steps=0)  # a step's loss comes after its end

    def _say(self, steps: int) -> None:
        """Report `steps` more, with what is known of the last one."""
        seconds = max(time.monotonic() - self.trainer.started, 1e-9)
        speed = (self.trainer.tokens - self.tokens_before) / seconds
        losses = (f"{key} {loss:.4g}" for key, loss in self.losses.items())
        self.advance(*losses, f"{speed:.0f} tokens/s", f"peak {memory.peak() / 1e9:.2f} GB", steps=steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # the random numbers of a step depend on nothing before it, so that a resumed run draws the same
        step = self.trainer.steps_before + state.global_step
        torch.manual_seed(((args.seed * 1_000_003 + step) * 65_537 + processes.rank()) % 2**63)
        self.trainer.step_inputs.clear()
        self.trainer.cache.before_step(step)
        if ranks := self.trainer.elastic_ranks:
            adapters, sandwich = self.trainer.adapters.values(), self.trainer.sandwich
            elastic.draw(adapters, ranks, args.seed, step, sandwich=sandwich)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop before values that are not finite reach the adapters.

        Raises:
            DivergedError: with the step and the first module that made one.

        """
        losses, self.trainer.finite = self.trainer.finite, None
        good = (losses is None or bool(losses)) and finite.finite_gradients(self.trainer.trained)
        # one process's own loss may be infinite and its gradient finite; all have to stop for it
        if not processes.add_up(torch.tensor(int(not good))):
            return
        first = finite.first_failure(self.trainer.model, self.trainer.trained, self.trainer.step_inputs)
        kept = checkpoint.last(self.trainer.checkpoints.directory)
        left = f"{kept.name} is kept" if kept else "there was no checkpoint yet"
        raise DivergedError(
            f"step {state.global_step + 1}: {first} is NaN or infinite; nothing was published and {left}. Use a"
            f" lower {self.section}.learning_rate, a warm-up, or {self.section}.dtype: float32, and check the data;"
            " with other settings start over with --force"
        )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.cache.after_update()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.epoch = state.global_step / state.max_steps  # Trainer would begin again after a resumption
        self._say(steps=1)
        if self.trainer.held_out and state.global_step == state.max_steps:
            control.should_evaluate = True  # the last adapter competes too
        if self.stop.asked():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The one pass over the batches has ended: training too, and where data were short what there is is saved."""
        control.should_training_stop = True
        if 0 < state.global_step < state.max_steps and not self.stop.heard:
            control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        self.trainer.checkpoints.consider(metrics["eval_loss"], state.global_step)

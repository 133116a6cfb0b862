"""One training run: the Trainer's settings, and the facts of what was done."""

import logging
import math
import os
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from lors_cli import console
from lors_cli.adapters import Adapter
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Train
from lors_cli.data.instructions import Example
from lors_cli.models import load
from lors_cli.training.collate import collate
from lors_cli.training.merging import Merging
from lors_cli.training.trainer import CHECKPOINTS, AdapterTrainer

log = logging.getLogger(__name__)

# Checkpoints and held-out losses in a run, where the config leaves their number open; a run of a million steps is
# still saved every thousand.
CHECKPOINTS_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
MOST_STEPS_BETWEEN = 1000


@dataclass
class Data:
    """Tokenised examples and what was found in reading them."""

    train: list[Example]
    held_out: list[Example] | None
    facts: dict[str, Any]
    padding: int


def total_steps(section: Train, examples: int) -> int:
    """Optimiser steps of the run."""
    per_epoch = math.ceil(examples / section.samples_per_step)
    return section.max_steps or math.ceil((section.epochs or 3) * per_epoch)


def train(
    config: Config,
    section: Train,
    model: Any,
    attached: dict[str, Adapter],
    data: Data,
    partial: Path,
    resume: Path | None,
) -> dict[str, Any]:
    """Train `attached` in `model`, going on from the checkpoint `resume` where there is one.

    Returns:
        facts for the manifest.

    Raises:
        LorsError: the loss became NaN or infinite.

    """
    steps = total_steps(section, len(data.train))
    before = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    merging = Merging(section, attached, model.device, config.seed)
    with console.progress("train: step", steps, before) as advance:
        trainer = AdapterTrainer(
            adapters=attached,
            merging=merging,
            log_file=partial / "training_log.jsonl",
            advance=advance,
            model=model,
            args=_arguments(config, section, steps, partial, held_out=data.held_out is not None),
            train_dataset=data.train,
            eval_dataset=data.held_out,
            data_collator=bind(collate, padding=data.padding),
        )
        outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    held_out = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    seconds = outcome.metrics["train_runtime"]
    tokens = data.facts["train.dataset"]["tokens"] / len(data.train) * section.samples_per_step * (steps - before)
    return {
        "steps": trainer.state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_losses": held_out,
        "trainable_parameters": sum(t.numel() for a in attached.values() for t in a.tensors().values()),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        **merging.facts(),
    }


def _arguments(config: Config, section: Train, steps: int, partial: Path, *, held_out: bool) -> TrainingArguments:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(partial / "tensorboard")
    device = load.pick_device(config.device)

    def every(asked: int | None, per_run: int) -> int:
        return asked or min(max(steps // per_run, 1), MOST_STEPS_BETWEEN)

    arguments = TrainingArguments(
        output_dir=str(scratch(partial) / CHECKPOINTS),
        per_device_train_batch_size=section.samples_per_forward,
        per_device_eval_batch_size=section.samples_per_forward,
        gradient_accumulation_steps=section.samples_per_step // section.samples_per_forward,
        max_steps=steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule
        if section.warmup == 0 or section.schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=section.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=every(section.save_steps, CHECKPOINTS_PER_RUN),
        save_total_limit=2,
        eval_strategy="steps" if held_out else "no",
        eval_steps=every(section.eval_steps, EVALUATIONS_PER_RUN),
        prediction_loss_only=True,
        report_to=list(section.report_to) or "none",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise it would wrap the model in DataParallel
    return arguments

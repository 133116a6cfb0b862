"""The settings of transformers' Trainer: the schedule of the learning rate, the optimiser, the intervals."""

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from lors_cli.config.train import Train
from lors_cli.training import checkpoint
from lors_cli.training.batches import Batching


class _Arguments(TrainingArguments):  # type: ignore[misc]
    """Arguments for a model that is already where it computes; sharded weights cannot be moved."""

    place_model_on_device = property(lambda self: False)


def arguments(
    section: Train,
    batching: Batching,
    device: torch.device,
    seed: int,
    checkpoints: Path,
    logs: Path,
    *,
    held_out: bool,
) -> TrainingArguments:
    """The settings of a training.

    Args:
        section: of the config.
        batching: how its samples are taken.
        device: where this process computes.
        seed: of dropout and the like.
        checkpoints: their directory.
        logs: a directory for other logs than ours.
        held_out: whether there is a held-out loss.

    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs / "tensorboard")
    settings = _Arguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=batching.per_forward,
        per_device_eval_batch_size=batching.per_forward,
        gradient_accumulation_steps=batching.accumulation,
        max_steps=batching.steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=schedule(section),
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",
        seed=seed,
        logging_steps=section.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=checkpoint.save_steps(section, batching.steps),
        eval_strategy="steps" if held_out else "no",
        eval_steps=checkpoint.eval_steps(section, batching.steps),
        report_to=list(section.report_to) or "none",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        ignore_data_skip=True,  # the batches start where they should
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    settings._n_gpu = min(settings.n_gpu, 1)  # otherwise it would wrap the model in DataParallel
    return settings


def schedule(section: Train) -> str:
    """The name that transformers has for the schedule of the learning rate.

    It rises from 0 for `warmup` steps, or for that fraction of all steps, and then falls to 0 by a half cosine or
    linearly, or stays as it is.
    """
    # transformers' plain "constant" knows no warm-up
    return "constant_with_warmup" if section.schedule == "constant" and section.warmup else section.schedule

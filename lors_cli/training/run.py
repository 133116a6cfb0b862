"""One training run: the Trainer's settings, and the facts of what was done."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from lors_cli import console, processes
from lors_cli.adapters import Adapter
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Train
from lors_cli.data.example import Example
from lors_cli.errors import LorsError
from lors_cli.models import load
from lors_cli.training import checkpoint
from lors_cli.training.batches import Batches, Plan, Samples, in_parts
from lors_cli.training.collate import collate
from lors_cli.training.loss import LanguageModelLoss
from lors_cli.training.merging import Merging
from lors_cli.training.stopping import gracefully
from lors_cli.training.trainer import AdapterTrainer, own_share
from lors_cli.training.watch import Watch

# Checkpoints and held-out losses in a run, where the config leaves their number open; a run of a million steps is
# still saved every thousand.
CHECKPOINTS_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
MOST_STEPS_BETWEEN = 1000


@dataclass
class Data:
    """The samples to train on, those held out, what was found in reading them, and the token to pad with."""

    train: Samples
    held_out: list[Example]
    facts: dict[str, Any]
    padding: int


def train(
    config: Config,
    section: Train,
    model: LanguageModelLoss,
    attached: dict[str, Adapter],
    data: Data,
    plan: Plan,
    partial: Path,
    resume: Path | None,
    *,
    sharded: bool,
) -> dict[str, Any]:
    """Train `attached` in `model`, going on from the checkpoint `resume` where there is one.

    Returns:
        facts for the manifest; the adapters are then those to be published.

    Raises:
        DivergedError: the loss or a gradient is not finite.
        LorsError: the data ended before the last step.
        KeyboardInterrupt: a scheduler asked for an end; what was done is saved.

    """
    before = checkpoint.step_of(resume) if resume else 0
    state = checkpoint.read_facts(resume)["data"] if resume else None
    batches = Batches(data.train, plan, data.padding, before, state)
    merging = Merging(section, attached, model.device, config.seed, sharded=sharded)
    with console.progress("train: step", plan.steps, before) as advance, gracefully() as stop:
        held_out = in_parts(data.held_out, plan.per_forward)
        trainer = AdapterTrainer(
            adapters=attached,
            batches=batches,
            held_out=own_share([collate(part, data.padding) for part in held_out]) if held_out else [],
            merging=merging,
            sharded=sharded,
            keep_checkpoints=section.keep_checkpoints,
            model=model,
            args=_arguments(config, section, plan, partial, held_out=bool(held_out)),
        )
        trainer.add_callback(Watch(trainer, partial / "training_log.jsonl", section.keep == "best", advance, stop))
        outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    done = trainer.state.global_step
    if done < plan.steps:
        raise LorsError(
            f"the data ended after step {done} of {plan.steps} and {trainer.tokens} tokens; checkpoint-{done} is kept."
            " Go on with train.repeat=true, which starts the data again, or ask for less with --force"
        )
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    kept = {}
    if trainer.best:
        kept = {"kept_step": trainer.best[1], "eval_loss": trainer.best[0]}
        if processes.rank() == 0:  # it wrote them and will publish them; the others may be ahead of that
            checkpoint.load_adapters(attached, checkpoint.best(Path(trainer.args.output_dir), trainer.best[1]))
    held_out_losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    if held_out_losses and not kept:
        kept = {"kept_step": done, "eval_loss": held_out_losses[-1]}
    return {
        "steps": done,
        "tokens": trainer.tokens,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_losses": held_out_losses,
        **kept,
        "trainable_parameters": sum(t.numel() for a in attached.values() for t in a.tensors().values()),
        "tokens_per_second": round(batches.tokens / max(outcome.metrics["train_runtime"], 1e-9), 1),
        "processes": processes.count(),
        **merging.facts(),
    }


class _Arguments(TrainingArguments):  # type: ignore[misc]
    """Trainer's settings; the model is where it computes already, and sharded weights cannot be moved."""

    place_model_on_device = property(lambda self: False)


def _arguments(config: Config, section: Train, plan: Plan, partial: Path, *, held_out: bool) -> TrainingArguments:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(partial / "tensorboard")
    device = load.pick_device(config.device)

    def every(asked: int | None, per_run: int) -> int:
        return asked or min(max(plan.steps // per_run, 1), MOST_STEPS_BETWEEN)

    arguments = _Arguments(
        output_dir=str(scratch(partial) / checkpoint.CHECKPOINTS),
        per_device_train_batch_size=plan.per_forward,
        per_device_eval_batch_size=plan.per_forward,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=plan.steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule
        if section.warmup == 0 or section.schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        logging_steps=section.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=every(section.save_steps, CHECKPOINTS_PER_RUN),
        eval_strategy="steps" if held_out else "no",
        eval_steps=every(section.eval_steps, EVALUATIONS_PER_RUN),
        report_to=list(section.report_to) or "none",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        ignore_data_skip=True,  # the batches start where they should
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise it would wrap the model in DataParallel
    return arguments

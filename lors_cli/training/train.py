"""The work of a training: from a model directory and samples to the adapter's files, or to a checkpoint of it."""

import logging
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lors_cli import console, processes
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.vectors import Vector
from lors_cli.artifacts import adapter_file, sealed
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.publish import scratch
from lors_cli.errors import DivergedError, LorsError
from lors_cli.models import load, measure, memory, structure, targets
from lors_cli.models.identity import Digests
from lors_cli.stopping import gracefully
from lors_cli.training import checkpoint, documents, reading, rehearsal, setup, start
from lors_cli.training.arguments import arguments
from lors_cli.training.batches import Batches, in_parts
from lors_cli.training.checkpoint import Checkpoints
from lors_cli.training.collate import collate
from lors_cli.training.effective_cache import TrainingCache
from lors_cli.training.loss import LanguageModelLoss
from lors_cli.training.prepare import Training
from lors_cli.training.trainer import AdapterTrainer, own_share
from lors_cli.training.watch import Watch

log = logging.getLogger(__name__)

LOG = "training_log.jsonl"


def train(training: Training, directory: Path, teacher: Path | None, partial: Path) -> dict[str, Any]:
    """Train an adapter of the model in `directory`, going on from the last checkpoint where there is one.

    Args:
        training: what was checked.
        directory: of the model.
        teacher: the directory of the model to learn from, if there is one.
        partial: where the adapter, the log and checkpoints go.

    Returns:
        facts for the manifest.

    Raises:
        RequestError: the weights do not allow what was asked for.
        DivergedError: a value is not finite.
        LorsError: the data ended before the last step, or give nothing to start from.
        KeyboardInterrupt: a scheduler asked for an end; what was done is saved.

    """
    section, data = training.section, training.data
    if (section.dtype or training.config.dtype) == "float16":
        log.warning("float16 would need loss scaling; training runs in float32, which holds its values exactly")
    names = _linears(training, directory)
    for name, facts in data.facts.items():
        log.info("%s.%s: %s", section.key, name, ", ".join(f"{fact} {value}" for fact, value in facts.items()))
    for line in reading.findings(data):
        log.info("%s: %s", section.key, line)
    if not section.target_modules:  # those that it names were tried before the work began
        trust = training.config.trust_remote_code
        skeleton = load.skeleton(directory, trust_remote_code=trust, quantized=True)
        rehearsal.check(skeleton, section, names)
    model, attached, also, made_on = setup.model_and_adapters(training, directory, teacher, names)
    if training.beginning:
        training.beginning.check_targets(names, also)
        log.info("%s: %s", section.key, training.beginning.lines()[0])
    if also:
        places = Counter(".".join(name.split(".")[-2:]) for name in also)
        counts = ", ".join(f"{count} x {place}" for place, count in places.items())
        log.info("%s: trained beside the adapters: %s", section.key, counts)
    if not training.packing_tried:
        documents.refuse_leaks(model.model, section.key, type(model.model).__name__)
    work = scratch(partial)
    checkpoints = Checkpoints(work / checkpoint.CHECKPOINTS, {**attached, **also}, section, sealed.owner(work))
    resume = checkpoints.latest()
    if resume:
        log.info("%s: resuming from %s", section.key, resume.name)
    else:
        if (partial / LOG).exists():
            log.info("%s: there is no checkpoint to go on from; the training begins again", section.key)
        if training.beginning:
            training.beginning.place(attached, also)
        else:
            _start(training, model, attached, also)
    facts = _run(training, model, attached, also, checkpoints, resume, partial)
    for line in reading.drawn(data):
        log.info("%s.%s", section.key, line)
    _write(training, attached, also, made_on, directory, partial)
    needs = training.needs
    estimated = " to ".join(dict.fromkeys(f"{size / 1e9:.2f}" for size in (needs.total, needs.most)))
    log.info("%s: peak memory %.2f GB, estimated %s", section.key, memory.peak() / 1e9, estimated)
    return {
        **facts,
        "data": reading.recorded(data),
        "train_dtype": training.dtype,
        "init": section.starts_from[0] if section.starts_from else section.resolved_init,
        **(training.beginning.facts() if training.beginning else {}),
        "linears": len(names),
        **({"also": list(also)} if also else {}),
        "estimated_bytes": needs.total,
    }


def _linears(training: Training, directory: Path) -> list[str]:
    """The linears to adapt: those that were pruned, unless the config names some or the model has no zeros to keep."""
    section, names = training.section, training.names
    every = section.target_modules is not None or structure.read(directory) is not None
    if every and section.base != "packed":
        return names
    measured = measure.model(directory, trust_remote_code=training.config.trust_remote_code)["modules"]
    sparsities = {name: measured[name]["sparsity"] if name in measured else 0.0 for name in names}
    key = f"{section.key}.target_modules"
    if not every:
        names = targets.pruned(sparsities, key, directory)
    if section.option("quantization_aware") and training.coded:
        targets.check_coded(names, training.coded.names, key)
    if section.base == "packed":
        chosen, dtype = {name: sparsities[name] for name in names}, load.DTYPES[training.dtype]
        targets.check_packable(chosen, dtype, f"{section.key}.base", f"leave it out of {key}, or use base: dense")
    return names


def _start(training: Training, model: LanguageModelLoss, attached: dict[str, Adapter], also: dict[str, Vector]) -> None:
    """Give the adapters their start, from the samples of the first steps if they start from data."""
    section, per_step = training.section, training.batching.per_step
    steps = 1 if section.resolved_init == "random" else section.init_steps
    first = list(islice(training.data.train.starting_at(0), per_step * steps))
    if len(first) < per_step * steps:
        got = f"{len(first)} samples for {steps} of {per_step}"
        what = training.data.train.ended or "the data"
        raise LorsError(
            f"{what} ended before the steps that the start needs: {got}; lower {section.key}.batch_size or init_steps,"
            f" or set {section.key}.repeat: true"
        )
    trained = [tensor for vector in also.values() for tensor in vector.tensors().values()]
    for tensor in trained:  # the start is the adapters' alone: no gradient of it is to be left here
        tensor.requires_grad_(False)
    start.initialize(training, model, attached, first)
    for tensor in trained:
        tensor.requires_grad_(True)


def _run(
    training: Training,
    model: LanguageModelLoss,
    attached: dict[str, Adapter],
    also: dict[str, Vector],
    checkpoints: Checkpoints,
    resume: Path | None,
    partial: Path,
) -> dict[str, Any]:
    """All steps that are left; the adapters are then those to be published. Returns facts for the manifest."""
    config, section, data, batching = training.config, training.section, training.data, training.batching
    before, state = checkpoint.place(resume)
    batches = Batches(data.train, batching, data.padding, before, state)
    cache = TrainingCache(section, attached, model.device, config.seed, sharded=training.sharded)
    held_out = [collate(part, data.padding) for part in in_parts(data.held_out, batching.per_forward)]
    answer = "asked to stop: the step is finished and a checkpoint saved"
    with (
        console.progress(f"{section.key}: step", batching.steps, before) as advance,
        gracefully(answer) as stop,
    ):
        trainer = AdapterTrainer(
            adapters=attached,
            vectors=also,
            vector_rate=section.also_learning_rate or section.learning_rate,
            batches=batches,
            held_out=own_share(held_out),
            cache=cache,
            elastic_ranks=section.elastic_ranks,
            sandwich=section.elastic_sampling == "sandwich",
            checkpoints=checkpoints,
            beginning=training.beginning,
            device=training.device,
            sharded=training.sharded,
            model=model,
            args=arguments(
                *(section, batching, training.device, config.seed, checkpoints.directory, partial),
                held_out=bool(held_out),
            ),
        )
        trainer.add_callback(Watch(trainer, partial / LOG, section.key, advance, stop))
        outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if stop.came:  # after the last step too: what is left to do can wait
        raise KeyboardInterrupt
    done = trainer.state.global_step
    if done < batching.steps:
        what = data.train.ended or "the data"
        raise LorsError(
            f"{what} ended after step {done} of {batching.steps} and {trainer.tokens} tokens; checkpoint-{done} is"
            f" kept. Go on with {section.key}.repeat=true, which starts the data again, or ask for less with --force"
        )
    checkpoints.take_best()
    kept = section.save_optimizer and processes.rank() == 0
    optimizer = {"optimizer_step": checkpoints.save_optimizer(trainer.optimizer, partial)} if kept else {}
    losses, held_out_losses = (
        [line[key] for line in trainer.state.log_history if key in line] for key in ("loss", "eval_loss")
    )
    kept_loss, kept_step = checkpoints.best or (held_out_losses[-1] if held_out_losses else None, done)
    return {
        "steps": done,
        "tokens": trainer.tokens,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_losses": held_out_losses,
        **({} if kept_loss is None else {"kept_step": kept_step, "eval_loss": kept_loss}),
        "trainable_parameters": sum(
            t.numel() for one in trainer.trained.values() for t in one.tensors().values() if t.requires_grad
        ),
        "tokens_per_second": round(trainer.tokens / max(outcome.metrics["train_runtime"], 1e-9), 1),
        "processes": processes.count(),
        "trainer": trainer.in_force,
        **optimizer,
        **cache.facts(),
    }


def _write(
    training: Training,
    attached: dict[str, Adapter],
    also: dict[str, Vector],
    made_on: dict[str, Digests],
    directory: Path,
    partial: Path,
) -> None:
    """Write the adapter's files, of several processes the first."""
    section = training.section
    modules: dict[str, dict[str, Tensor]] = {name: dict(adapter.tensors()) for name, adapter in attached.items()}
    vectors: dict[str, Tensor] = {name: vector.tensors()["value"] for name, vector in also.items()}
    tensors = [*vectors.values(), *(tensor for named in modules.values() for tensor in named.values())]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DivergedError(
            f"the trained adapter is not finite; use a lower {section.key}.learning_rate. Nothing was published"
        )
    if processes.rank() == 0:
        content = AdapterFile(section.method, section.rank, section.alpha, modules, made_on, vectors=vectors)
        content.quantization_aware = bool(section.option("quantization_aware"))
        adapter_file.save(partial, content, base=str(directory), dropout=section.option("dropout") or 0.0)

"""transformers' Trainer, made to train adapters: our batches, our checkpoints, an exact held-out loss."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from lors_cli import processes
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.vectors import Trained, Vector
from lors_cli.errors import request_error
from lors_cli.training.batches import Batches
from lors_cli.training.beginning import Beginning
from lors_cli.training.checkpoint import Checkpoints, load_adapters
from lors_cli.training.effective_cache import TrainingCache

# Of accelerate's state: each would train in a way of its own.
PLUGINS = ("deepspeed_plugin", "fsdp_plugin", "megatron_lm_plugin", "torch_tp_plugin", "parallelism_config")


class AdapterTrainer(Trainer):  # type: ignore[misc]
    """Trains the adapters of a frozen model.

    Args:
        adapters: by the names of their linears.
        vectors: what is trained beside them, by their names; they do not decay.
        vector_rate: the peak of their learning rate.
        batches: of this process, from the first step on that is still to do.
        held_out: micro-batches of this process for a held-out loss; every process has as many.
        cache: is told of micro-batches and steps.
        elastic_ranks: of which each step draws one for each adapter, if there are any.
        sandwich: whether two of three steps take the largest and the smallest of these instead.
        checkpoints: writes and reads them.
        beginning: the adapter that it starts from, if there is one.
        device: where this process computes, as the config says.
        sharded: whether FSDP2 holds the frozen weights; the adapters' gradients are then added up here.
        options: of Trainer; `model` gives a loss and takes num_items_in_batch.

    Attributes:
        steps_before: of the earlier trainings that it goes on from.
        trained: adapters and vectors.
        step_inputs: the micro-batches of the step at hand.
        finite: whether all of its losses were finite so far, on the device.
        in_force: what accelerate does, for the manifest and the log.

    Raises:
        RequestError: accelerate would train otherwise than the request says.

    """

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        vectors: Mapping[str, Vector],
        vector_rate: float,
        batches: Batches,
        held_out: list[dict[str, Tensor]],
        cache: TrainingCache,
        elastic_ranks: Sequence[int] | None,
        sandwich: bool,
        checkpoints: Checkpoints,
        beginning: Beginning | None,
        device: torch.device,
        sharded: bool,
        **options: Any,
    ) -> None:
        # Trainer asks for data sets where it only needs to know that there are some
        super().__init__(train_dataset=batches, eval_dataset=held_out or None, **options)
        self.adapters, self.elastic_ranks, self.sandwich = adapters, elastic_ranks, sandwich
        self.trained: dict[str, Trained] = {**adapters, **vectors}
        self.vectors, self.vector_rate = vectors, vector_rate
        self.batches, self.held_out = batches, held_out
        self.cache, self.checkpoints, self.sharded = cache, checkpoints, sharded
        self.beginning, self.steps_before = beginning, beginning.steps if beginning else 0
        self.step_inputs: list[dict[str, Tensor]] = []
        self.finite: Tensor | None = None
        self.tokens_before, self.started = 0, time.monotonic()
        self._before: dict[str, Any] = {"seconds": 0.0}
        self.in_force = self._check_accelerator(device)
        self.remove_callback(PrinterCallback)
        if sharded:  # the model is distributed already; accelerate would wrap it again, in DDP
            self.accelerator.prepare_model = bind(self.accelerator.prepare_model, evaluation_mode=True)

    def _check_accelerator(self, device: torch.device) -> dict[str, Any]:
        """What accelerate does, once its state is made; the environment may say more than its variables."""
        state = self.accelerator.state
        plugins = [name for name in PLUGINS if getattr(state, name, None) is not None]
        found = {
            "mixed_precision": str(state.mixed_precision),
            "distributed_type": state.distributed_type.value,
            "dynamo_backend": state.dynamo_plugin.backend.value,
            "plugins": plugins,
            "gradient_accumulation_steps": self.accelerator.gradient_accumulation_steps,  # Trainer does it by itself
            "processes": state.num_processes,
            "gpus_per_process": max(self.args.n_gpu, 1),
            "device": self.args.device.type,
        }
        wanted: dict[str, tuple[Any, ...]] = {
            "mixed_precision": ("no",),
            "distributed_type": ("NO", "MULTI_CPU", "MULTI_GPU", "MPS"),
            "dynamo_backend": ("NO",),
            "plugins": ([],),
            "gradient_accumulation_steps": (1,),
            "processes": (processes.count(),),
            "gpus_per_process": (1,),
            "device": (device.type,),
        }
        for name, values in wanted.items():
            if found[name] not in values:
                remedy = "start lors with torchrun or by itself, without a config of accelerate"
                raise request_error(
                    f"accelerate's {name}", " or ".join(map(str, values)), found[name], remedy, "environment"
                )
        return found

    @property
    def tokens(self) -> int:
        """Tokens that training has seen, over all processes, with those before a resumption."""
        return self.tokens_before + self.batches.tokens

    @property
    def seconds(self) -> float:
        """How long training has taken, with what came before a resumption."""
        return float(self._before["seconds"]) + time.monotonic() - self.started

    def begin(self) -> None:
        """Training begins, or goes on: Trainer has set its sums to zero, which are to cover the whole of it."""
        self.started = time.monotonic()
        if kept := self._before.get("losses"):
            here, same = processes.rank(), len(kept["pending"]) == processes.count()
            self._tr_loss += kept["pending"][here] if same else sum(kept["pending"]) / len(kept["pending"])
            self._total_loss_scalar, self._globalstep_last_logged = kept["total"], kept["logged"]
            self._initial_global_step = 0
        elif (start := self.beginning) and start.optimizer_step is not None:
            self.checkpoints.load_optimizer(self.optimizer, start.path, start.optimizer_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, at the end with the time of the whole training."""
        if (last := logs.get("train_runtime")) is not None:
            logs["train_runtime"] = round(last + self._before["seconds"], 4)
            for key in ("train_samples_per_second", "train_steps_per_second"):
                logs[key] = round(logs[key] * last / max(logs["train_runtime"], 1e-9), 3)
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser: what is trained beside the adapters has a learning rate of its own and no decay."""
        new, optimizer = self.optimizer is None, super().create_optimizer(model)
        if new and self.vectors:
            own = [tensor for vector in self.vectors.values() for tensor in vector.tensors().values()]
            numbers = {id(tensor) for tensor in own}
            for group in optimizer.param_groups:
                group["params"] = [tensor for tensor in group["params"] if id(tensor) not in numbers]
            optimizer.add_param_group({"params": own, "lr": self.vector_rate, "weight_decay": 0.0})
        return optimizer

    def get_train_dataloader(self) -> Any:
        """The micro-batches; they are this process's own already, so accelerate is not asked to share them out."""
        return DataLoader(self.batches, batch_size=None)

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward; remembers, on the device, whether the loss was finite."""
        self.step_inputs.append(inputs)
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.finite = loss.isfinite() if self.finite is None else self.finite & loss.isfinite()
        self.cache.after_micro_batch(inputs["input_ids"].numel())
        if self.sharded and self.accelerator.sync_gradients:
            self._average_gradients()
        return loss

    def _average_gradients(self) -> None:
        """Average the gradients after a step's last backward, as DDP does; they are small, so in one piece."""
        gradients = [t.grad for one in self.trained.values() for t in one.tensors().values() if t.grad is not None]
        flat = processes.add_up(torch.cat([gradient.reshape(-1) for gradient in gradients])) / processes.count()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The mean loss of the held-out tokens, over all processes."""
        model = self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in self.held_out:
            batch = self._prepare_inputs(batch)
            learnt = batch["labels"][:, 1:].ne(-100).sum()
            model(**batch, num_items_in_batch=1)
            # an adapter is judged by the data, also where it learns from a teacher
            sums += torch.stack([model.parts["loss_data"].double(), learnt.double()])
        loss, learnt = processes.add_up(sums).tolist()
        metrics = {"eval_loss": loss / learnt}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pending = processes.everyone(float(self._tr_loss))
        self.cache.clear()  # a resumed run has nothing of what a held-out loss has made, and counts the same
        if self.args.should_save:
            losses = {"pending": pending, "total": self._total_loss_scalar, "logged": self._globalstep_last_logged}
            facts = {
                "tokens": self.tokens,
                "data": self.batches.state(self.state.global_step),
                "seconds": self.seconds,
                "losses": losses,
                "cache": self.cache.state(),
            }
            self.checkpoints.save(self.optimizer, self.lr_scheduler, self.state, facts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapters(self.trained, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint_directory: str | None) -> None:
        if checkpoint_directory:
            facts = self.checkpoints.restore(Path(checkpoint_directory), self.optimizer, self.lr_scheduler)
            self.tokens_before, self._before = facts["tokens"], facts
            self.cache.go_on(facts["cache"])

    def _load_rng_state(self, checkpoint_directory: str | None) -> None:
        """Nothing to restore: each step seeds its own."""


def own_share(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The part of this process of held-out micro-batches; all have as many, the last ones some that teach nothing."""
    share = batches[processes.rank() :: processes.count()]
    if len(share) < math.ceil(len(batches) / processes.count()):
        spare = {key: value.clone() for key, value in batches[-1].items()}
        spare["labels"].fill_(-100)
        share.append(spare)
    return share

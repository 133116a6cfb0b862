"""The loss that a training minimises, as a module: what DistributedDataParallel wraps and the Trainer calls its model.

Position t predicts token t + 1. The losses of the learnt tokens are summed and divided by how many the optimiser step
has, so that micro-batches and processes weigh each token alike. With a teacher a token's loss is

    (1 - weight) * cross-entropy + weight * temperature^2 * KL(teacher || student)

(Hinton et al. 2015, arXiv 1503.02531, where temperature^2 makes up for the gradient's 1 / temperature^2).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lors_cli.data.example import IGNORED
from lors_cli.models.linears import decoder
from lors_cli.training.chunked import Head, Sums, Teacher, chunked_loss, in_full

log = logging.getLogger(__name__)

PROBES = 8  # tokens that show what a model does to the logits
PROBED_LOGIT = 100.0  # beyond every soft cap in use (30 to 50): near zero a cap changes nothing


class LanguageModelLoss(nn.Module):
    """The loss of a causal language model whose head is frozen.

    Args:
        model: its adapters may be attached, and it may be cast or moved, after this.
        chunked: compute the logits a chunk of tokens at a time, where the model allows it.
        teacher: a model with the same vocabulary, on the same device; it is frozen, and no submodule of this one.
        weight: of the divergence from the teacher.
        temperature: divides both models' logits in the divergence.
        section: the name of the config's section, for messages.

    Raises:
        ValueError: the teacher has another vocabulary.

    """

    # read by the Trainer, which then counts labels[..., 1:] for num_items_in_batch
    loss_type = "ForCausalLM"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        chunked: bool = True,
        teacher: PreTrainedModel | None = None,
        weight: float = 0.5,
        temperature: float = 1.0,
        section: str = "train",
    ) -> None:
        super().__init__()
        self.model = model
        self.weight, self.temperature, self._section = weight, temperature, section
        # In a tuple, where DDP, FSDP, parameters() and train() do not find it.
        self._teacher = () if teacher is None else (teacher.requires_grad_(False).eval(),)
        # "loss_data" and, with a teacher, "loss_teacher" of the last forward: the two terms before they are weighted.
        self.parts: dict[str, Tensor] = {}
        self._chunked = None if chunked else False
        if teacher is not None and _vocabulary(teacher) != _vocabulary(model):
            raise ValueError(f"a teacher with {_vocabulary(model)} tokens as the student, got {_vocabulary(teacher)}")

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **batch: Any,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            input_ids: (rows, length).
            labels: (rows, length), -100 where a token is not learnt.
            attention_mask: of the model.
            position_ids: of the model.
            num_items_in_batch: divides the summed loss; the learnt tokens of this batch if left out.
            batch: what else the models take.

        Returns:
            "loss", in float32; zero, with zero gradients, where no token is learnt.

        """
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        batch |= {name: value for name, value in given.items() if value is not None}
        inputs = {"input_ids": input_ids, **batch, "use_cache": False}
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        positions = (targets != IGNORED).nonzero().squeeze(1)
        compute = self._in_chunks if self.resolve() else self._at_once
        sums = compute(inputs, positions, targets[positions])
        count = len(positions) if num_items_in_batch is None else num_items_in_batch
        divisor = torch.as_tensor(count).clamp(min=1)
        # divided one by one: the Trainer scales the loss in place
        self.parts = {"loss_data": sums.data.detach() / divisor}
        if self._teacher:
            self.parts["loss_teacher"] = sums.teacher.detach() / divisor
        return {"loss": sums.loss / divisor}

    def resolve(self) -> bool:
        """Whether the loss is computed in chunks. Found out once, at the latest by the first forward.

        That costs two forward passes of a few tokens through each model. Where processes hold parts of it they must
        come here together, as they do in forward; a model that is still whole each may ask for itself.
        """
        if self._chunked is None:
            changed = [type(model).__name__ for model in (self.model, *self._teacher) if not plain_head(model)]
            self._chunked = not changed
            if changed:
                log.warning(
                    "%s.chunked_loss is not for %s, whose logits are more than its head's product (a soft cap, a"
                    " scale, or a head that learns); all logits of a micro-batch are computed at once",
                    *(self._section, " and ".join(changed)),
                )
        return self._chunked

    def _in_chunks(self, inputs: dict[str, Any], positions: Tensor, targets: Tensor) -> Sums:
        """Compute the loss from the states at `positions`; only these need logits."""

        def states(model: Any) -> Tensor:
            hidden: Tensor = decoder(model)(**inputs).last_hidden_state
            return hidden.flatten(0, 1).index_select(0, positions)

        teacher = None
        for model in self._teacher:
            with torch.no_grad():
                teacher = Teacher(states(model), _head(model), self.weight, self.temperature)
        return chunked_loss(states(self.model), _head(self.model), targets, teacher)

    def _at_once(self, inputs: dict[str, Any], positions: Tensor, targets: Tensor) -> Sums:
        """Compute the loss from all logits, whatever the model does to them."""

        def logits(model: Any) -> Tensor:
            return in_full(model(**inputs).logits.flatten(0, 1).index_select(0, positions))

        z = logits(self.model)
        data = F.cross_entropy(z, targets, reduction="sum")
        if not self._teacher:
            return Sums(data, data, torch.zeros_like(data))
        with torch.no_grad():
            log_p = torch.log_softmax(logits(self._teacher[0]).to(z.dtype) / self.temperature, 1)
        log_q = torch.log_softmax(z / self.temperature, 1)
        divergence = self.temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="sum")
        return Sums((1 - self.weight) * data + self.weight * divergence, data, divergence)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Pass the call to the model."""
        self.model.gradient_checkpointing_enable(**options)


@torch.no_grad()
def plain_head(model: Any) -> bool:
    """Whether a model's logits are its backbone's last states times the weight of its head, plus the bias, and no more.

    Both are compared on a few tokens. Half of the comparison is the backbone called alone; for the other half, while
    the whole model runs, the last states are replaced by such large ones that a soft cap on the logits would bite.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    ids = (torch.arange(PROBES, device=head.weight.device) % _vocabulary(model))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    seen: list[Tensor] = []
    with _evaluating(model):  # no dropout: it would differ between the passes, and take numbers from the generator
        states = decoder(model)(**inputs).last_hidden_state
        magnified = states * (PROBED_LOGIT / _head(model).logits(states).abs().max()).to(states.dtype)

        def magnify(module: nn.Module, args: Any, output: Any) -> Any:
            seen.append(output.last_hidden_state)
            output.last_hidden_state = magnified
            return output

        hook = decoder(model).register_forward_hook(magnify)
        try:
            logits = model(**inputs).logits
        finally:
            hook.remove()
        wanted = _head(model).logits(magnified)
    return len(seen) == 1 and _close(seen[0], states) and _close(logits, wanted)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ only by rounding in their coarser dtype, as the products of some kernels do."""
    unit = max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps)
    one, other = in_full(one), in_full(other)
    return one.shape == other.shape and bool((one - other).abs().max() <= 2 * unit * other.abs().max())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _head(model: Any) -> Head:
    head = model.get_output_embeddings()
    return Head(head.weight, head.bias)


def _vocabulary(model: Any) -> int:
    size: int = model.config.get_text_config().vocab_size
    return size

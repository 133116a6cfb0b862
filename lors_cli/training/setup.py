"""The model of a training: with its adapters, its loss and its teacher, on one device or sharded over processes."""

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lors_cli import processes
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.nf4_linear import nf4_linear
from lors_cli.adapters.replace import replace_linears
from lors_cli.adapters.vectors import Vector, train_vectors
from lors_cli.models import codes, identity, load, vectors
from lors_cli.models.identity import Digests
from lors_cli.models.linears import all_linears, head
from lors_cli.training.loss import LanguageModelLoss
from lors_cli.training.prepare import Training
from lors_cli.training.sharding import shard


def model_and_adapters(
    training: Training, directory: Path, teacher: Path | None, names: list[str]
) -> tuple[LanguageModelLoss, dict[str, Adapter], dict[str, Vector], dict[str, Digests]]:
    """The loss of the model in `directory` with adapters around the linears `names`.

    Returns:
        the loss, on the device or sharded over the processes; the adapters by these names; the vectors that are trained
        beside them, by their names in the model; and, in the process that will write all this, the digests of the model
        that they are made on.

    Raises:
        RequestError: the model does not have the vectors that were asked for.

    """
    section, device = training.section, training.device

    def read(path: Path) -> Any:
        host, trust = torch.device("cpu"), training.config.trust_remote_code
        model: Any = (
            codes.load_codes(path, training.dtype, trust_remote_code=trust)
            if section.base == "int4" and path == directory
            else load.load_model(path, training.dtype, host, trust_remote_code=trust)
        )
        model.config.use_cache = False
        return model

    # on the host until the adapters are in: a packed base must not pass through the device as a dense one
    model = read(directory)
    made_on = identity.of(identity.in_memory(model)) if processes.rank() == 0 else {}
    set_seed(training.config.seed)
    attached = replace_linears(
        model,
        names,
        section.computed.adapter,
        base=section.base,
        dense=head(model),
        rank=section.rank,
        alpha=section.alpha,
        **section.options().arguments(),
    )
    if section.base == "nf4":  # also linears without an adapter
        for name, linear in all_linears(model).items():
            if name.removesuffix(".linear") not in attached:
                model.set_submodule(name, nf4_linear(linear))
    also = train_vectors(model, vectors.find(model, section.also, names, f"{section.key}.also"))
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teaching: dict[str, Any] = {}
    if section.distill and teacher:
        distill = section.distill
        teaching = {"teacher": read(teacher), "weight": distill.weight, "temperature": distill.temperature}
    loss = LanguageModelLoss(model, chunked=section.chunked_loss, section=section.key, **teaching)
    if training.sharded:
        loss.resolve()  # it runs the model, which it could not do in parts
        shard(model, device, root=loss)
        if teaching:
            shard(teaching["teacher"], device)
    else:
        model.to(device)
        if teaching:
            teaching["teacher"].to(device)
        loss.resolve()
    return loss, attached, also, made_on

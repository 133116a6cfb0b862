"""The model of a training: with its adapters, its loss and its teacher, on one device or sharded over processes."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lors_cli import processes
from lors_cli.adapters import Adapter
from lors_cli.adapters.nf4_linear import nf4_linear
from lors_cli.adapters.replace import replace_linears
from lors_cli.config.schema import Config, Train
from lors_cli.models import load
from lors_cli.models.linears import all_linears, head
from lors_cli.training.loss import LanguageModelLoss
from lors_cli.training.sharding import shard


def sharded(section: Train) -> bool:
    """Whether processes hold parts of the weights; ``accelerate launch --use_fsdp`` asks for that too."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return processes.count() > 1 and (asked or section.parallel == "fsdp")


def model_and_adapters(
    config: Config,
    section: Train,
    directory: Path,
    teacher: Path | None,
    names: list[str],
    dtype: str,
    device: torch.device,
    *,
    in_parts: bool,
) -> tuple[LanguageModelLoss, dict[str, Adapter]]:
    """The model with its adapters and its loss, on the device or sharded over the processes."""

    def read(path: Path) -> Any:
        host = torch.device("cpu")
        found: Any = load.load_model(path, dtype, host, trust_remote_code=config.trust_remote_code)
        found.config.use_cache = False
        return found

    # on the host until the adapters are in: a packed base must not pass through the device as a dense one
    model = read(directory)
    set_seed(config.seed)
    options = {"dropout": section.dropout, "checkpoint": section.adapter_checkpointing}
    if section.merge_rounding == "stochastic":
        options["stochastic"] = True
    attached = replace_linears(
        model,
        names,
        section.adapter,
        base=section.base,
        dense=head(model),
        rank=section.rank,
        alpha=section.alpha,
        **options,
    )
    if section.base == "nf4":  # those that no adapter sits on as well
        for name, linear in all_linears(model).items():
            if name.removesuffix(".linear") not in attached:
                model.set_submodule(name, nf4_linear(linear))
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teaching: dict[str, Any] = {}
    if section.distill and teacher:
        dense = read(teacher)
        teaching = {
            "teacher": dense,
            "weight": section.distill.weight,
            "temperature": section.distill.temperature,
        }
    wrapped = LanguageModelLoss(model, chunked=section.chunked_loss, **teaching)
    if in_parts:
        wrapped.resolve()  # it runs the model, which it could not do in parts
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # it would shard once more
        shard(model, device, root=wrapped)
        if teaching:
            shard(dense, device)
    else:
        model.to(device)
        if teaching:
            dense.to(device)
        wrapped.resolve()
    return wrapped, attached

"""Where the first value that is not finite comes from, once a training has met one."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli import processes
from lors_cli.adapters.vectors import Trained


def finite_gradients(trained: Mapping[str, Trained]) -> bool:
    """Whether every gradient of what is trained is finite."""
    gradients = [t.grad for one in trained.values() for t in one.tensors().values() if t.grad is not None]
    # a norm of squares overflows where no gradient does; the largest magnitude does not
    norms = torch._foreach_norm(gradients, float("inf"))
    return bool(torch.stack([norm.isfinite() for norm in norms]).all())


def first_failure(model: nn.Module, trained: Mapping[str, Trained], batches: Iterable[dict[str, Any]]) -> str:
    """Run the micro-batches of the failed step again and name the first thing that is not finite.

    In the order of computing: a trained tensor, the output of a module, the loss, the gradient of a trained tensor. All
    processes run all of their micro-batches, as sharded weights need; the first that found something is believed.
    """
    failures = [_trained(trained), *(_in_one(model, trained, batch) for batch in batches)]
    named = [name for of_process in processes.everyone(failures) for name in of_process if name]
    return str(named[0]) if named else "the sum of the gradients"


def _trained(trained: Mapping[str, Trained]) -> str | None:
    for name, one in trained.items():
        for own, tensor in one.tensors().items():
            if not bool(tensor.isfinite().all()):
                return f"{own} of {name}"
    return None


def _in_one(model: nn.Module, trained: Mapping[str, Trained], batch: dict[str, Any]) -> str | None:
    failures: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not failures and isinstance(first, Tensor) and not bool(first.isfinite().all()):
                failures.append(f"the output of {name}")

        return look

    inputs = {key: value.to(next(model.parameters()).device) for key, value in batch.items()}
    # a module's hook comes after those of the modules in it, so the innermost is named
    modules = [(name.partition(".")[2], module) for name, module in model.named_modules()]
    hooks = [module.register_forward_hook(watch(name)) for name, module in modules if name]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    loss = model(**inputs)["loss"]
    loss.backward()
    if not failures and not bool(loss.isfinite()):
        failures.append("the loss")
    for name, one in reversed(list(trained.items())):  # backward goes from the last block to the first
        for own, tensor in one.tensors().items():
            if not failures and tensor.grad is not None and not bool(tensor.grad.isfinite().all()):
                failures.append(f"the gradient of {own} of {name}")
    return failures[0] if failures else None

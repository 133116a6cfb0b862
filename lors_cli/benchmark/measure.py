"""Time, memory and work of one subject: what a profiler, a hook and a clock see."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lors_cli import console
from lors_cli.benchmark import clock
from lors_cli.benchmark.subject import Subject


def seconds(subject: Subject, inputs: Tensor, target: Tensor | None) -> float:
    """The seconds of a micro-batch; where a unit of work is a window of several, their mean.

    One micro-batch runs before, untimed, because in a training every step finds the memory that the one before used.
    In a window only the first micro-batch makes the effective weights. The others do equal work and enter with their
    median, so that a window is not disturbed more easily than a single micro-batch.
    """
    subject.run(inputs, target, 1)
    subject.renew()
    times = []
    for _ in range(subject.micro_batches):
        times.append(clock.seconds(lambda: subject.backward(subject.forward(inputs, target), target), inputs.device))
    subject.drop_gradients(inputs)
    first, *equal = times
    return (first + len(equal) * statistics.median(equal)) / len(times) if equal else first


def _attention_flops(products: int, query: int) -> Any:
    """Counts the matrix `products` of an attention kernel whose argument number `query` is the query.

    Keys and values may have fewer heads than the query, which the formula of torch 2.13 knows, unlike that of 2.11.
    """

    def count(*shapes: Any, **_: Any) -> int:
        (batch, heads, length, width), keys = shapes[query], shapes[query + 1][2]
        return int(products * 2 * batch * heads * length * keys * width)

    return count


# A forward pass multiplies queries with keys, and scores with values; a backward pass repeats the first for two
# gradients of each.
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention{suffix}"): _attention_flops(products, query)
    for kernel in ("flash", "efficient", "cudnn")
    for suffix, products, query in (("", 2, 0), ("_backward", 5, 1))
}


def counts(subject: Subject, inputs: Tensor, target: Tensor | None) -> dict[str, int]:
    """FLOPs of forward and backward, and the bytes kept between them besides parameters and the input.

    For a cached variant they are those of the window's mean micro-batch.
    """
    subject.renew()
    passes = []  # the first makes the effective weights; all others of a window are like the second
    for _ in range(min(subject.micro_batches, 2)):
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as forward:
            output, saved = _saved_bytes(subject, inputs, target)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
            subject.backward(output, target)
        passes.append((forward.get_total_flops(), backward.get_total_flops()))
        del output
    subject.drop_gradients(inputs)
    first, second, parts = passes[0], passes[-1], subject.micro_batches
    forward_flops, backward_flops = ((a + (parts - 1) * b) // parts for a, b in zip(first, second, strict=True))
    return {"forward_flops": forward_flops, "backward_flops": backward_flops, "saved_bytes": saved}


def _saved_bytes(subject: Subject, inputs: Tensor, target: Tensor | None) -> tuple[Tensor, int]:
    """The output, and the bytes of all storages that autograd or a checkpoint keeps, each counted once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def keep_input(_: Any, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    # a checkpoint keeps its input by itself, where no hook sees it
    checkpointed = [adapter for adapter in subject.adapters.values() if adapter.adapter_checkpointing]
    hooks = [adapter.register_forward_pre_hook(keep_input) for adapter in checkpointed]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = subject.forward(inputs, target)
    for hook in hooks:
        hook.remove()
    own = {t.untyped_storage().data_ptr() for t in [*subject.model.parameters(), inputs]}
    return output, sum(size for place, size in kept.items() if place not in own)


def peak_bytes(subject: Subject, inputs: Tensor, target: Tensor | None) -> int:
    """The most memory of a unit of work: weights, inputs, and the peak of what is allocated on top of them."""
    subject.cache.clear()
    given = sum(tensor.numel() * tensor.itemsize for tensor in (inputs, target) if tensor is not None)
    few = min(subject.micro_batches, 2)
    return subject.resident_bytes() + given + allocated_peak(lambda: subject.run(inputs, target, few), inputs.device)


def allocated_peak(run: Callable[[], None], device: torch.device) -> int:
    """The peak of the bytes that `run` allocates."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with console.third_party_output(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak

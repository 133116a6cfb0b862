"""The gradients of a model's loss in its blocks, one block after another, so that one block's are in memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli.errors import LorsError
from lors_cli.models.linears import block_linears, find_blocks

Visit = Callable[[int, nn.Module], None]


def visit_backwards(model: PreTrainedModel, windows: Tensor, visit: Visit, advance: Callable[[], None]) -> None:
    """Visit the blocks from the last to the first, with the gradients of the loss in the weights of their linears.

    The states that enter each block are kept on the host; a block is run again for its gradients, whose memory is
    then given back.

    Args:
        model: frozen, in memory.
        windows: token ids, (windows, length); the loss is the sum over windows of their mean token loss.
        visit: called with a block's number and the block, whose linears' weights have a `.grad`.
        advance: called after each window of each block.

    Raises:
        LorsError: a gradient is not finite.

    """
    prefix, blocks = find_blocks(model)
    calls, gradients = [], []
    for window in windows:
        recorded, gradient = _forward(model, blocks, window[None].to(model.device))
        calls.append(recorded)
        gradients.append(gradient)
    for index in reversed(range(len(blocks))):
        block = blocks[index]
        weights = [linear.weight for linear in block_linears(block).values()]
        for weight in weights:
            weight.requires_grad_(True)
        for number, recorded in enumerate(calls):
            states, args, kwargs = recorded.pop()
            states = states.to(model.device).requires_grad_(True)
            output = block(states, *args, **kwargs)
            output = output[0] if isinstance(output, tuple) else output
            output.backward(gradients[number].to(model.device))
            gradients[number] = _to_host(states.grad)
            advance()
        if not all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in weights):
            raise LorsError(f"{prefix}.{index}: a gradient is NaN or infinite; use dtype: float32")
        visit(index, block)
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def _forward(model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor) -> tuple[list[Any], Tensor]:
    """What each block is called with, and the gradient of the loss in the states after the last block."""
    recorded: list[Any] = []
    leaves: list[Tensor] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.append((_to_host(args[0]), args[1:], kwargs))

    def cut(block: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        leaves.append(states.detach().requires_grad_(True))
        return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

    hooks = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(cut))
    try:
        # nothing before the cut asks for a gradient, so nothing is saved for one
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return recorded, _to_host(leaves[0].grad)


def _to_host(tensor: Any) -> Tensor:
    host: Tensor = tensor.detach().cpu()
    return host

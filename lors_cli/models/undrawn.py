"""Random numbers are not drawn for tensors without content, where it takes most of the time of building a model."""

from collections.abc import Callable, Sequence
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

# methods of tensors and functions of torch.nn.init, which transformers replaces while it builds a model
_DRAW = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"}


class Undrawn(TorchFunctionMode):
    """Leaves out what fills a tensor of the meta device, or a fake one, with random numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or give its tensor back as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _DRAW:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta or isinstance(tensor, FakeTensor):
                return tensor
        return func(*args, **kwargs)

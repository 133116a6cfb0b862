"""Putting adapters into a model: the named linears are replaced, everything else is frozen."""

from torch import nn

from lors_cli.adapters.base import Adapter


def attach(
    model: nn.Module,
    names: list[str],
    adapter: type[Adapter],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    checkpoint: bool = False,
) -> dict[str, Adapter]:
    """Replace each linear of `names` in `model` by an `adapter` around it.

    Returns:
        the adapters by the names of their linears; only their own tensors are trainable.

    """
    model.requires_grad_(False)
    attached = {}
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{name} is a {type(linear).__name__}, not a linear")
        attached[name] = adapter(linear, rank=rank, alpha=alpha, dropout=dropout, checkpoint=checkpoint)
        model.set_submodule(name, attached[name])
    return attached

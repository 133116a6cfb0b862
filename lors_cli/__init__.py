"""Sparse language models from end to end: prune, train with adapters that keep the zeros, merge, evaluate."""

from typing import Any

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    """``lors_cli.load``, which is in `lors_cli.api`: imported when it is asked for, because PyTorch takes seconds."""
    if name == "load":
        from lors_cli.api import load

        return load
    raise AttributeError(f"module 'lors_cli' has no attribute {name!r}")

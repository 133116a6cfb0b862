"""Sparse language models from end to end: prune, train with adapters that keep the zeros, merge, evaluate."""

__version__ = "0.2.0.dev0"

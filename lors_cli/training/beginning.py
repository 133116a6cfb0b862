"""An adapter that a training starts from: a finished one of ours that is trained further, or any that fits."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lors_cli.adapters.base import Adapter
from lors_cli.adapters.vectors import Vector
from lors_cli.artifacts import adapter_file
from lors_cli.errors import request_error


@dataclass(frozen=True)
class Beginning:
    """An adapter to start from, checked to be of the method, the rank and the alpha of the training.

    Attributes:
        key: the config's path to it.
        path: its directory.
        steps: optimiser steps of the trainings that made it, if this one goes on from there.
        tokens: the same, tokens.
        samples: the place in the data after which this training takes its samples.
        optimizer_step: AdamW's, if its state lies beside the adapter.

    """

    key: str
    path: Path
    steps: int = 0
    tokens: int = 0
    samples: int = 0
    optimizer_step: float | None = None

    @property
    def further(self) -> bool:
        """Whether an earlier training goes on."""
        return self.key.endswith(".resume_from")

    def lines(self) -> list[str]:
        """What a dry run says of it."""
        if not self.further:
            return [f"starts from {self.path}"]
        state = "with" if self.optimizer_step else "without"
        data = f"the data after {self.samples} samples" if self.samples else "the data from their beginning"
        return [f"goes on from {self.path}, made in {self.steps} steps, {state} its optimiser's state, with {data}"]

    def facts(self) -> dict[str, Any]:
        """What the manifest records; a training that goes on from this one in turn needs the first three."""
        own = {"steps": self.steps, "tokens": self.tokens, "samples": self.samples}
        return {"further": {**own, "optimizer": self.optimizer_step is not None}} if self.further else {}

    def check_targets(self, names: Collection[str], also: Collection[str] | None = None) -> None:
        """Check that it has something for exactly the linears `names`, and the vectors `also` beside them.

        Raises:
            RequestError: it does not.

        """
        content = adapter_file.load(self.path, self.key)
        section = self.key.partition(".")[0]
        if others := sorted(content.modules.keys() ^ set(names)):
            has = "which has nothing for" if others[0] in names else "which also has"
            listed = json.dumps(sorted(content.modules))
            remedy = f"set {section}.target_modules to what it has, {listed}, or name another adapter"
            got = f"{self.path}, {has} {others[0]}"
            raise request_error(self.key, f"an adapter of the {len(names)} linears that are trained", got, remedy)
        if also is not None and (others := sorted(content.vectors.keys() ^ set(also))):
            got = f"{self.path}, {'without' if others[0] in also else 'with'} a trained {others[0]}"
            remedy = f"set {section}.also to what it was trained with"
            raise request_error(self.key, "an adapter with the norms and biases that are trained", got, remedy)

    @torch.no_grad()
    def place(self, attached: Mapping[str, Adapter], also: Mapping[str, Vector]) -> None:
        """Give the adapters, and the vectors beside them, its values."""
        content = adapter_file.load(self.path, self.key)
        for name, adapter in attached.items():
            for key, tensor in adapter.tensors().items():
                tensor.copy_(content.modules[name][key])
        for name, vector in also.items():
            vector.tensors()["value"].copy_(content.vectors[name])

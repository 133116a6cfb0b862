"""What each stage reads. Every input of a run is resolved here, once, before anything starts.

An input exists already, or a stage of the same run will make it; then it is known which model it will be like.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lors_cli import pruning
from lors_cli.artifacts import adapter_file, quantized_files
from lors_cli.config.prune import Prune
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError, request_error
from lors_cli.models import load, source, structure
from lors_cli.models.weights import open_weights
from lors_cli.quantization.grid import Grid
from lors_cli.run import layout, manifest
from lors_cli.run.layout import STAGES, merges_recovered, will_make
from lors_cli.sequential.structured import shrink_as_planned


@dataclass(frozen=True)
class Input:
    """A model or an adapter that a stage reads.

    Attributes:
        path: where it is, or will be.
        like: a directory that exists, with the shapes and the tokenizer that it has or will have.
        maker: the stage of this run that will make it; None if it exists.
        cut: how pruning will make it smaller than the model in `like`; None if it will not.
        grid: of its weights, if it is or will be quantised.

    """

    path: Path
    like: Path
    maker: str | None = None
    cut: Prune | None = None
    grid: Grid | None = None

    @property
    def smaller(self) -> bool:
        """Whether structured pruning has made, or will make, its blocks smaller than those of the original."""
        return self.cut is not None or structure.read(self.like) is not None

    def skeleton(self, config: Config, dtype: str = "auto", *, quantized: bool = False) -> PreTrainedModel:
        """The model without its weights; where its files are there, they are checked to be the model's.

        Args:
            config: of the run.
            dtype: as in `load.skeleton`.
            quantized: whether its weights may be quantised.

        Raises:
            RequestError: transformers cannot build it, or as in `open_weights`.

        """
        trust = config.trust_remote_code
        model = load.skeleton(self.like, dtype, trust_remote_code=trust, quantized=quantized)
        if self.maker is None and source.is_complete(self.like):
            open_weights(self.like, model, "model", converts=True)
        if self.cut:
            shrink_as_planned(self.cut, model)
        return model


class Graph:
    """The inputs of the `stages` of one run, which are in the order in which they run.

    `kept` are the bytes that each of them leaves, of those that have been checked.
    """

    def __init__(self, config: Config, stages: Sequence[str]) -> None:
        self.config, self.stages = config, list(stages)
        self.kept: dict[str, float] = {}
        self._resolved: dict[tuple[str, str], Input | RequestError] = {}

    def input(self, reader: str, name: str) -> Input:
        """What the stage `reader` reads under a `name` of its `reads`, or under any model's name or path for eval.

        Raises:
            RequestError: it does not exist, and no stage of this run makes it.

        """
        if (reader, name) not in self._resolved:
            try:
                self._resolved[reader, name] = self._resolve(reader, name)
            except RequestError as error:
                self._resolved[reader, name] = error
        resolved = self._resolved[reader, name]
        if isinstance(resolved, RequestError):
            raise resolved
        return resolved

    @property
    def merges_recovered(self) -> bool:
        """Whether merge takes what recover made, and the original."""
        return merges_recovered(self.config.model_dump(include={"recover", "merge"}))

    @property
    def converts(self) -> bool:
        """Whether an input is a model that will have to be fetched as a whole, or converted, to be looked at."""
        named = [value for stage in self.stages for _, value in layout.named(self.config, self.stages, stage)]
        return any(map(source.converts, named))

    def will_make(self, maker: str, reader: str) -> bool:
        """Whether the stage `maker` runs in this run, before `reader` if that runs too."""
        return will_make(self.stages, maker, reader)

    def _resolve(self, reader: str, name: str) -> Input:
        place, value = layout.place(self.config, reader, name)
        if value is not None:
            return self._existing(reader, value, place)
        key = "eval.models" if reader == "eval" else f"{reader}.{'adapter' if name == 'adapter' else 'input'}"
        return self._output(reader, place, key)

    def adapter(self, reader: str) -> tuple[Input, str]:
        """The adapter that the stage `reader` reads, and its method.

        Raises:
            RequestError: it is missing, or not one that lors can use.

        """
        adapter, train = self.input(reader, "adapter"), self.config.train
        if adapter.maker == "recover" and self.config.recover:
            return adapter, self.config.recover.makes
        if adapter.maker == "train" and train:
            return adapter, train.method
        return adapter, adapter_file.read_config(adapter.path, f"{reader}.adapter")["method"]

    def is_on_grid(self, reader: str) -> bool:
        """Whether the effective weights of the adapter that `reader` reads are on the grid of a quantised model.

        Raises:
            RequestError: as of `adapter`.

        """
        adapter, train = self.input(reader, "adapter"), self.config.train
        if adapter.maker:
            return adapter.maker == "train" and train is not None and bool(train.option("quantization_aware"))
        return bool(adapter_file.read_config(adapter.path, f"{reader}.adapter")["quantization_aware"])

    def _existing(self, reader: str, text: str, key: str) -> Input:
        """What the config names; it may be what an earlier stage of this run makes anew."""
        path = Path(text)
        for name, stage in STAGES.items():
            made = os.path.abspath(stage.output(self.config.output_dir))
            if os.path.abspath(path.expanduser()) == made and self.will_make(name, reader):
                return self._output(reader, name, key)
        if not key.endswith(layout.ADAPTERS):
            # prune checks shapes before it fetches more; only what measures reads packed models
            path = source.resolve(text, key, weights=reader != "prune", packed=reader == "eval")
        return Input(path, path, grid=quantized_files.grid_of(path))

    def _output(self, reader: str, maker: str, key: str) -> Input:
        """The finished output of an earlier stage, or what a stage of this run will make.

        Raises:
            RequestError: neither.

        """
        path = STAGES[maker].output(self.config.output_dir)
        if not self.will_make(maker, reader):
            if (path / manifest.NAME).is_file():
                return Input(path, path, grid=quantized_files.grid_of(path))
            state = "something that lors did not make" if path.exists() else "which does not exist"
            remedy = f"run `lors {maker}` first, or set {key}"
            raise request_error(key, f"the output of `lors {maker}`", f"{path}, {state}", remedy)
        if maker in ("train", "recover"):
            return Input(path, path, maker)
        made_from = self.input(maker, "model" if maker == "prune" else "pruned")
        cut = (self._cut() if maker == "prune" else None) or made_from.cut
        return Input(path, made_from.like, maker, cut, self._grid(maker) or made_from.grid)

    def _grid(self, maker: str) -> Grid | None:
        """The grid that a stage will round weights to."""
        sections = {"quantize": self.config.quantize, "prune": self.config.prune and self.config.prune.quantize}
        kind = sections.get(maker)
        return Grid(kind.bits, kind.group_size, kind.symmetric) if kind else None

    def _cut(self) -> Prune | None:
        """The prune section, if it makes the model smaller."""
        section = self.config.prune
        return section if section and section.method in pruning.STRUCTURED else None

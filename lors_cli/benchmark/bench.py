"""The benchmark of ``lors bench``: time, memory, FLOPs and saved bytes of each method, side by side in one run.

The cells of a benchmark (a scope, a sequence length, a batch size, a rank) are written as they finish, so that the same
command goes on where an interrupted one stopped.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lors_cli import console, numerics
from lors_cli.artifacts import digest, files, publish
from lors_cli.benchmark import cells, plots, roofline
from lors_cli.benchmark.roofline import Hardware, Setting, Shape
from lors_cli.benchmark.subject import SCOPES, build, read_shape
from lors_cli.benchmark.tables import AXES, tables
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.errors import nearest, request_error
from lors_cli.models import load
from lors_cli.models.device import check_dtype, pick_device
from lors_cli.run import environment
from lors_cli.sparsity.pattern import Pattern

log = logging.getLogger(__name__)

MOST = 10**9  # of any count that is given

RESULTS = "bench.json"
PREDICTED = "predicted.json"  # never among what was measured
# The shape, scopes, dtype and lengths that are measured where nothing else is asked: on a GPU, on a CPU; and predicted.
DEFAULTS = {
    "cuda": ("llama-3-8b", ("linear", "block"), "bfloat16", (2048,)),
    "cpu": ("tinyllama-1.1b", ("linear", "block"), "float32", (1024,)),
    "predict": ("llama-3-8b", ("model",), "bfloat16", (512, 1024, 2048)),
}


@dataclass(frozen=True)
class Options:
    """What to measure; what is None or empty depends on the device.

    The first entries of the lists are the base. Along each list the other quantities stay at their base, as in the
    paper's figures.
    """

    shape: str | None = None
    scopes: tuple[str, ...] = ()
    sequence_lengths: tuple[int, ...] = ()
    ranks: tuple[int, ...] = (16,)
    batch_sizes: tuple[int, ...] = (1,)
    methods: tuple[str, ...] = ()
    sparsity: str = "2:4"
    device: str = "auto"
    dtype: str | None = None
    accumulation: int = 8
    gradient_checkpointing: bool = False
    rounds: int = 5
    time_limit: float = 1200.0
    predict: bool = False
    hardware: str | None = None
    output_dir: str | None = None
    force: bool = False


class Bench:
    """A benchmark whose options were checked: its cells in order, and where their results go.

    Raises:
        RequestError: an option is wrong.

    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = torch.device("cpu") if options.predict else pick_device(options.device)
        if self.device.type not in DEFAULTS:
            if options.device != "auto":
                raise request_error("--device", "cpu or cuda, whose memory can be measured", options.device, "use cpu")
            self.device = torch.device("cpu")
        name, scopes, dtype, lengths = DEFAULTS["predict" if options.predict else self.device.type]
        self.name, self.dtype_name = options.shape or name, options.dtype or dtype
        _one_of("--dtype", [self.dtype_name], tuple(load.DTYPES))
        check_dtype(self.dtype_name, self.device, "--dtype")
        self.dtype = load.DTYPES[self.dtype_name]
        self.config = read_shape(self.name)
        self.shape = Shape.of(self.config)
        _one_of("--scopes", options.scopes, SCOPES)
        _one_of("--methods", options.methods, tuple(VARIANTS))
        self.methods = [method for method in VARIANTS if method in options.methods or not options.methods]
        self.pattern = self._pattern()
        self.settings = self._settings(options.scopes or scopes, options.sequence_lengths or lengths)

    def _pattern(self) -> Pattern:
        try:
            pattern = Pattern.parse(self.options.sparsity)
        except ValueError as error:
            raise request_error("--sparsity", str(error), self.options.sparsity, "correct it") from None
        for width in (self.shape.hidden, self.shape.intermediate):
            if pattern.m and width % pattern.m:
                got = f"{pattern} for {width} inputs"
                raise request_error("--sparsity", "an N:M whose M divides the inputs", got, "choose another")
        return pattern

    def _settings(self, scopes: tuple[str, ...], lengths: tuple[int, ...]) -> list[Setting]:
        asked = self.options
        given = {"--sequence-lengths": lengths, "--ranks": asked.ranks, "--batch-sizes": asked.batch_sizes}
        given |= {"--rounds": (asked.rounds,), "--accumulation": (asked.accumulation,)}
        for key, values in given.items():
            if not values or min(values) < 1 or max(values) > MOST:
                expected = f"whole numbers of at least 1 and of at most {MOST}"
                raise request_error(key, expected, ", ".join(map(str, values)), "correct it")
        if not asked.time_limit >= 0:  # as not a number is not, either
            raise request_error("--time-limit", "seconds, at least 0", asked.time_limit, "correct it")
        most = min(min(linear) for scope in scopes for linear in self.shape.linears(scope))
        if max(asked.ranks) > most:
            expected = f"at most {most}, the smallest side of a linear of {self.name}"
            raise request_error("--ranks", expected, max(asked.ranks), "lower it")
        length, rank, batch = lengths[0], asked.ranks[0], asked.batch_sizes[0]
        points = [(length, rank, batch), *((one, rank, batch) for one in lengths)]
        points += [(length, one, batch) for one in asked.ranks]
        points += [(length, rank, one) for one in asked.batch_sizes]
        fixed = self.dtype.itemsize, asked.gradient_checkpointing, asked.accumulation
        return [
            Setting(scope, length, batch, rank, *fixed)
            for scope in scopes
            for length, rank, batch in dict.fromkeys(points)
        ]

    def predict(self) -> dict[str, Any]:
        """The roofline's figures for every cell, on hardware that need not be here."""
        chosen = self.options.hardware or "h100"
        _one_of("--hardware", [chosen], tuple(roofline.KNOWN))
        hardware = roofline.KNOWN[chosen]
        cells = [_cell(one, self._predicted(one, hardware, self.methods, optimizer=True)) for one in self.settings]
        results = {**self._facts(hardware), "cells": cells}
        if self.options.output_dir:
            directory = Path(self.options.output_dir)
            directory.mkdir(parents=True, exist_ok=True)
            files.write_json(directory / PREDICTED, results)
            files.write_text((directory / PREDICTED).with_suffix(".md"), tables(cells) + "\n")
            log.info("bench: wrote %s", directory / PREDICTED)
        return results

    def measure(self) -> dict[str, Any]:
        """Measure what an earlier run of the same settings has not; write results, tables and plots.

        Raises:
            RequestError: the results there are of other settings.

        """
        name = self.name.removesuffix("/config.json").rsplit("/", 1)[-1]
        place = f"runs/bench/{name}-{self.dtype_name}-{self.device.type}"
        directory = Path(self.options.output_dir or place)
        with publish.exclusive(directory):
            done = self._earlier(directory)
            hardware = Hardware(**done["roofline"]) if done else roofline.calibrate(self.device, self.dtype)
            results = {**self._facts(hardware), "cells": done.get("cells", []), "not_measured": []}
            self._fill(results, hardware, directory)
            title = f"{self.name}, {self.dtype_name}, {self.options.sparsity}, {hardware.name}"
            (directory / "bench.md").write_text(tables(results["cells"]) + "\n")
            for path in plots.draw(results["cells"], directory, title):
                log.info("bench: drew %s", path)
        return results

    def _fill(self, results: dict[str, Any], hardware: Hardware, directory: Path) -> None:
        deadline = time.monotonic() + self.options.time_limit
        base, scope = None, ""
        earlier = {_point(cell): list(cell["methods"]) for cell in results["cells"]}
        todo = [one for one in self.settings if not {*self.methods} <= {*earlier.get(_point(asdict(one)), ())}]
        steps = len(todo) * (1 + self.options.rounds)
        with console.progress("bench:", steps * len(self.methods)) as advance:
            for setting in todo:
                # what was measured there before is measured again beside the new, never mixed with it
                wanted = {*self.methods, *earlier.get(_point(asdict(setting)), ())}
                methods = self._predicted(setting, hardware, wanted, optimizer=False)
                runnable = {name: figures for name, figures in methods.items() if "skipped" not in figures}
                if setting.scope != scope:
                    base, scope = None, setting.scope
                cells.free_memory()
                built = sum(p.numel() * p.itemsize for p in base.parameters()) if base else 0
                left = deadline - time.monotonic()
                if reason := cells.unfit(self.shape, setting, self.device, runnable, left, built):
                    words = f"{setting.scope}, {setting.tokens} tokens, rank {setting.rank}"
                    log.warning("bench: %s was not measured: %s", words, reason)
                    results["not_measured"].append({**_cell(setting, {}), "reason": reason})
                    advance(steps=len(self.methods) * (1 + self.options.rounds))
                    continue
                base = base or build(self.config, scope, self.dtype, self.device, self.pattern)
                cells.measured(base, setting, runnable, rounds=self.options.rounds, deadline=deadline, advance=advance)
                cell = _cell(setting, methods)
                results["cells"] = [one for one in results["cells"] if _point(one) != _point(cell)] + [cell]
                files.write_json(directory / RESULTS, results)
        files.write_json(directory / RESULTS, results)

    def _predicted(
        self, setting: Setting, hardware: Hardware, methods: Iterable[str], *, optimizer: bool
    ) -> dict[str, Any]:
        names = [name for name in VARIANTS if name in methods]
        methods = cells.predicted(names, self.shape, setting, hardware, optimizer=optimizer)
        rows = [rows for rows, _ in self.shape.linears(setting.scope)]
        for name, figures in methods.items():
            if VARIANTS[name].method == "spp" and any(count % setting.rank for count in rows):
                figures["skipped"] = f"rank {setting.rank} does not divide {', '.join(map(str, sorted({*rows})))}"
        return methods

    def _request(self) -> dict[str, Any]:
        """What makes results comparable with each other."""
        asked = self.options
        return {
            "shape": self.name,
            "config": digest.of_value(asdict(self.shape)),
            "dtype": self.dtype_name,
            "sparsity": asked.sparsity,
            "accumulation": asked.accumulation,
            "gradient_checkpointing": asked.gradient_checkpointing,
            "rounds": asked.rounds,
            "threads": torch.get_num_threads(),
        }

    def _facts(self, hardware: Hardware) -> dict[str, Any]:
        return {
            "settings": self._request(),
            "roofline": asdict(hardware),
            "hardware": environment.hardware(),
            "versions": environment.versions(),
            "numerics": numerics.in_force(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }

    def _earlier(self, directory: Path) -> dict[str, Any]:
        """The results that are there, of the same settings on the same hardware and versions."""
        path = directory / RESULTS
        if self.options.force or not path.is_file():
            return {}
        try:
            results: dict[str, Any] = json.loads(path.read_text())
            before = {key: dict(results[key]) for key in ("settings", "hardware", "versions")}
        except (ValueError, LookupError, TypeError) as error:
            got = f"{path}, damaged: {error!r}"
            raise request_error("--output-dir", "results of lors bench", got, "--force measures again") from None
        now = {"settings": self._request(), "hardware": environment.hardware(), "versions": environment.versions()}
        for part, values in now.items():
            for key in sorted({*values, *before[part]}):
                if values.get(key) != before[part].get(key):
                    got = f"{key} {values.get(key)!r}; {path} was measured with {before[part].get(key)!r}"
                    remedy = "another --output-dir keeps both; --force measures again"
                    raise request_error("--output-dir", "the same settings for all that is compared", got, remedy)
        return results


def _cell(setting: Setting, methods: dict[str, Any]) -> dict[str, Any]:
    return {**{key: getattr(setting, key) for key in ("scope", *AXES)}, "methods": methods}


def _point(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[key] for key in ("scope", *AXES))


def _one_of(key: str, values: Any, known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise request_error(key, ", ".join(known), value, nearest(value, known))


def bench(options: Options) -> dict[str, Any]:
    """Measure, or only predict; the result is what the JSON holds.

    Raises:
        RequestError: an option is wrong, or the results there are of other settings.

    """
    checked = Bench(options)
    return checked.predict() if options.predict else checked.measure()

"""What a training will need of memory and hardware, and whether that is there."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from lors_cli import processes
from lors_cli.adapters.lors import update_rows
from lors_cli.adapters.nf4_linear import BACKEND, BYTES_PER_WEIGHT, is_installed
from lors_cli.config.train import Train
from lors_cli.errors import request_error
from lors_cli.models import linears, load, memory, vectors
from lors_cli.models.codes import Coded
from lors_cli.models.device import check_dtype
from lors_cli.quantization.packed import bytes_per_weight
from lors_cli.training import activations, chunked

log = logging.getLogger(__name__)

BYTES_PER_TRAINED = 16  # the number itself, its gradient and AdamW's two moments, in float32


@dataclass(frozen=True)
class Needs:
    """Bytes that each process of a training takes."""

    trained: int  # numbers, not bytes
    weights: int
    cache: int
    loss: int
    process: int = 0  # what Python and the libraries take on the host, where the host computes
    activations: int | None = None  # unknown for some models
    one_weight: int = 0  # what is decoded or computed of a packed weight's size, one linear at a time
    cache_counts: bool = True  # otherwise it takes only what is left
    beside: int = 0  # numbers of those that are trained, of what is no adapter

    @classmethod
    def of(
        cls,
        skeleton: Any,
        section: Train,
        names: list[str],
        dtype: str,
        device: torch.device,
        *,
        teacher: Any = None,
        sharded: bool = False,
        coded: Coded | None = None,
    ) -> "Needs":
        """What it takes to adapt the linears `names` of a (skeleton) model, with a (skeleton) teacher if any.

        `coded` are the codes of a quantised model that are kept as such.

        Raises:
            RequestError: the model does not have what is to be trained beside them.

        """
        shapes = linears.shapes(skeleton, asked=names)
        sizes = [shapes[name] for name in names]
        options = section.options().arguments()
        trained = sum(
            math.prod(shape)
            for s in sizes
            for shape in section.computed.adapter.trained(*s, section.rank, **options).values()
        )
        also = vectors.find(skeleton, section.also, names, f"{section.key}.also")
        beside = sum(vector.numel() for vector in also.values())
        adapted = sum(map(math.prod, sizes)) * load.DTYPES[dtype].itemsize
        weights = load.weight_bytes(skeleton, dtype)
        if section.base == "packed":
            weights -= int(adapted * 7 / 16)  # at 50 % of zeros
        if section.base in ("nf4", "int4"):  # also linears without an adapter
            every = linears.shapes(skeleton)
            inside = sum(math.prod(every[name]) for name in (coded.names if coded else every))
            each = bytes_per_weight(coded.grid, skeleton.dtype) if coded else BYTES_PER_WEIGHT
            weights -= int(inside * (load.DTYPES[dtype].itemsize - each))
        if sharded:
            weights //= processes.count()
        if teacher:
            weights += _teacher_bytes(teacher, dtype, sharded=sharded)
        keeps = section.option("merge_cache") not in (None, "off") and not sharded
        tokens = section.samples_per_forward * section.sequence_length
        head = linears.head(skeleton).keys() & set(names)
        # the logits, their copy in float32 and the copy's gradient
        logits = tokens * skeleton.config.get_text_config().vocab_size
        return cls(
            trained=trained + beside,
            beside=beside,
            weights=weights,
            cache=adapted if keeps else 0,
            # a teacher's logits are there with the student's
            # a head that learns makes all logits at once
            loss=(min(logits, chunked.chunk_elements(device)) if section.chunked_loss and not head else logits)
            * (24 if teacher else 12),
            process=psutil.Process().memory_info().rss if device.type == "cpu" else 0,
            activations=activations.saved_bytes(skeleton, section, names, dtype),
            one_weight=max(_one_weight(section, size, load.DTYPES[dtype]) for size in sizes) if coded else 0,
            cache_counts=section.option("merge_cache") == "full" or section.base != "int4",
        )

    @property
    def total(self) -> int:
        """All of it; with the cache, which takes only what is free where it is not asked for in full."""
        known = self.process + self.weights + BYTES_PER_TRAINED * self.trained + self.loss + self.one_weight
        return known + (self.activations or 0) + (self.cache if self.cache_counts else 0)

    @property
    def most(self) -> int:
        """The same with the whole cache, however much of it is asked for."""
        return self.total + (0 if self.cache_counts else self.cache)

    def lines(self, section: Train) -> list[str]:
        """The figures, for people, with the settings that decide them."""
        tokens = section.samples_per_forward * section.sequence_length
        asked = section.option("merge_cache")
        cache = f", effective weights {self.cache / 1e9:.2f} (merge_cache: {asked})" if self.cache else ""
        if self.cache and not self.cache_counts:
            cache = f" (merge_cache: {asked} takes up to {self.cache / 1e9:.2f} more where they are free)"
        base = f"base: {section.base}{', at 50 % of zeros' if section.base in ('packed', 'int4') else ''}"
        one = f", one weight in full {self.one_weight / 1e9:.2f}" if self.one_weight else ""
        process = f" process {self.process / 1e9:.2f}," if self.process else ""
        size = "unknown" if self.activations is None else f"{self.activations / 1e9:.2f}"
        return [
            f"memory: {self.total / 1e9:.2f} GB:{process} weights {self.weights / 1e9:.2f} ({base}), adapter and"
            f" optimiser {self.trained * BYTES_PER_TRAINED / 1e9:.2f}, loss {self.loss / 1e9:.2f}{one}{cache},"
            f" activations of {tokens} tokens {size} (micro_batch_size, sequence_length, gradient_checkpointing)",
            f"disk: adapter {self.trained * 4 / 1e9:.3f} GB, checkpoints"
            f" {self.trained * 12 * (section.keep_checkpoints + 1) / 1e9:.3f} GB meanwhile",
        ]

    def check(self, section: Train, dtype: str, device: torch.device) -> None:
        """Check that `device` can compute in `dtype` and, as far as can be told, has the memory for a whole cache.

        Raises:
            RequestError: it cannot, or has not.

        """
        check_dtype(dtype, device, f"{section.key}.dtype")
        if section.base == "nf4":
            _check_nf4(section, device)
        if dtype != "bfloat16" and section.option("merge_rounding") == "stochastic":
            got = f"stochastic with {dtype}"
            raise request_error(
                f"{section.key}.merge_rounding",
                "nearest, because stochastic rounding is only for bfloat16",
                got,
                "leave it out",
            )
        free = memory.free(device)
        needed = self.total - self.process
        if section.option("merge_cache") == "full" and needed > free:
            raise request_error(
                f"{section.key}.merge_cache",
                f"{needed / 1e9:.2f} GB of free memory on {device}, {self.cache / 1e9:.2f} of them for the cache",
                f"{free / 1e9:.2f} GB",
                "merge_cache: auto keeps as many effective weights as fit; base: packed saves memory",
            )
        if (least := needed - (self.cache if self.cache_counts else 0)) > free:  # an estimate is not enough to refuse
            log.warning(
                "%s: about %.2f GB will be needed on %s, %.2f are free; a smaller %s.micro_batch_size or"
                " gradient_checkpointing: true needs less",
                *(section.key, least / 1e9, device, free / 1e9, section.key),
            )


def _one_weight(section: Train, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Bytes of what the products with a weight of `shape` need besides, where the weight is kept as codes.

    That is the effective or decoded weight. After it sqft makes the gradient of the update, in blocks of rows: each as
    the product has it, in float32, and beside it the decoded weight with the mask.
    """
    whole = math.prod(shape) * dtype.itemsize
    if section.method != "sqft":
        return whole
    block = update_rows(shape, 4) * shape[1]
    return max(whole, block * (4 + 4 * dtype.itemsize))


def _check_nf4(section: Train, device: torch.device) -> None:
    key = f"{section.key}.base"
    if not is_installed():
        remedy = f"pip install {BACKEND}, or set base: dense"
        raise request_error(key, "a base whose library is installed", f"nf4 without {BACKEND}", remedy)
    if device.type not in ("cpu", "cuda"):
        raise request_error(key, f"dense on {device.type}", "nf4, for cuda and cpu only", "leave it out")
    if section.parallel == "fsdp":
        got = "nf4 with parallel: fsdp"
        raise request_error(key, "weights that processes can hold parts of", got, "set parallel: ddp, or base: dense")


def _teacher_bytes(teacher: Any, dtype: str, *, sharded: bool) -> int:
    """The part of a teacher that a process holds: sharded, the whole of what is outside of its blocks."""
    size = load.weight_bytes(teacher, dtype)
    if not sharded:
        return size
    blocks = sum(parameter.numel() for parameter in linears.find_blocks(teacher)[1].parameters())
    inside: int = size * blocks // sum(parameter.numel() for parameter in teacher.parameters())
    return size - inside + inside // processes.count()

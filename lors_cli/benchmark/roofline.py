"""What a step should take: each product at the rate of the hardware, everything else at that of its memory.

A model of ideal kernels (fused norms, SwiGLU and cross-entropy, flash attention, no launch cost). Nothing here is
measured on the hardware named; it is what a measurement can be held against.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lors_cli.benchmark import clock
from lors_cli.benchmark.variants import GROUP, VARIANTS, Variant, Work
from lors_cli.models import sizes


@dataclass(frozen=True)
class Hardware:
    """Rates that large problems sustain, a second: operations (a multiply-add is two), and bytes read or written."""

    name: str
    flops: float
    bandwidth: float
    attention_forward: float
    attention_backward: float


# bf16 without sparsity, as sustained rather than as sold
KNOWN = {
    "h100": Hardware("NVIDIA H100 SXM 80 GB", 790e12, 3.0e12, 450e12, 400e12),
    "h200": Hardware("NVIDIA H200", 790e12, 4.3e12, 450e12, 400e12),
    "a100": Hardware("NVIDIA A100 SXM 80 GB", 260e12, 1.7e12, 180e12, 140e12),
}


def calibrate(device: torch.device, dtype: torch.dtype) -> Hardware:
    """The rates of this machine, measured with one product and one copy for a moment."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.empty(2**26 if device.type == "cuda" else 2**24, device=device, dtype=dtype)
    target = torch.empty_like(b)
    ways = {"product": lambda: a @ a, "copy": lambda: target.copy_(b)}
    taken = clock.medians(ways, device, rounds=5, warm_up=1)
    flops = 2 * size**3 / taken["product"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    return Hardware(name, flops, 2 * b.numel() * b.itemsize / taken["copy"], flops, flops)


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a transformer of Llama's kind."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    blocks: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape that a transformers config describes."""
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=sizes.head_width(config),
            blocks=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
        )

    def linears(self, scope: str) -> list[tuple[int, int]]:
        """The (R, C) of the adapted linears: the widest one for "linear", else those of one block."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads * self.head_width, self.kv_heads * self.head_width
        return [(i, h)] if scope == "linear" else [(q, h), (kv, h), (kv, h), (h, q), (i, h), (i, h), (h, i)]


@dataclass(frozen=True)
class Setting:
    """One measurement's size: `scope` is linear, block or model; `width` the bytes of a number."""

    scope: str
    sequence_length: int
    batch_size: int
    rank: int
    width: int
    checkpointing: bool = False
    accumulation: int = 8

    @property
    def tokens(self) -> int:
        """The tokens in a micro-batch."""
        return self.sequence_length * self.batch_size


def seconds(name: str, shape: Shape, setting: Setting, hardware: Hardware) -> float:
    """The seconds of forward and backward of one micro-batch with the variant `name`."""
    variant = VARIANTS[name]
    forward = backward = 0.0
    for rows, columns in shape.linears(setting.scope):
        forward += _linear(variant.forward, rows, columns, setting, hardware)
        backward += _linear(variant.backward, rows, columns, setting, hardware)
        if variant.cached:  # the window's one merge, its share
            forward += 2 * rows * columns * setting.width / hardware.bandwidth / setting.accumulation
    if setting.scope != "linear":
        more_forward, more_backward = _around(shape, setting, hardware)
        forward, backward = forward + more_forward, backward + more_backward
    if setting.checkpointing and setting.scope != "linear":
        backward += forward
    if setting.scope != "model":
        return forward + backward
    head = 2 * 2 * shape.vocabulary * shape.hidden * setting.tokens / hardware.flops
    return shape.blocks * (forward + backward) + head


def _linear(work: Work, rows: int, columns: int, setting: Setting, hardware: Hardware) -> float:
    tokens, width = setting.tokens, setting.width
    product = _product(rows, columns, tokens, width, hardware)
    moved = rows * columns * (work.weights * width + work.masks)
    moved += width * tokens * (rows * work.outputs + columns * (work.inputs + setting.rank * work.slices))
    # a merge's product hides behind its traffic up to a rank of some hundreds
    merging = 2 * work.merges * setting.rank * rows * columns / hardware.flops
    return work.gemms * product + max(moved / hardware.bandwidth, merging)


def _product(rows: int, columns: int, tokens: int, width: int, hardware: Hardware) -> float:
    moved = width * (rows * columns + tokens * (rows + columns))
    return max(2 * rows * columns * tokens / hardware.flops, moved / hardware.bandwidth)


def _around(shape: Shape, setting: Setting, hardware: Hardware) -> tuple[float, float]:
    """The seconds of attention, norms, rotations, SwiGLU and sums of one block, forward and backward."""
    tokens, width = setting.tokens, setting.width
    q, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    attention = 2 * setting.batch_size * setting.sequence_length**2 * q  # causal: half of two products
    hidden, inner, rotated = (width * tokens * numbers for numbers in (shape.hidden, shape.intermediate, q + kv))
    forward = 3 * inner + 2 * 2 * hidden + 2 * 3 * hidden + 2 * rotated
    backward = 5 * inner + 2 * 3 * hidden + 2 * 3 * hidden + 3 * 3 * hidden + 2 * rotated
    return (
        forward / hardware.bandwidth + attention / hardware.attention_forward,
        backward / hardware.bandwidth + 2.5 * attention / hardware.attention_backward,
    )


def trained(variant: Variant, linears: list[tuple[int, int]], rank: int) -> int:
    """How many numbers are trainable."""
    if variant.method is None:
        return 0
    spp = variant.method == "spp"
    return sum(rank * columns + rows if spp else rank * (rows + columns) for rows, columns in linears)


def peak_bytes(name: str, shape: Shape, setting: Setting, *, optimizer: bool = False) -> int:
    """Weights, trainable numbers with their gradients (and AdamW's moments), activations, and the largest temporary."""
    variant, linears = VARIANTS[name], shape.linears(setting.scope)
    tokens, width = setting.tokens, setting.width
    blocks = shape.blocks if setting.scope == "model" else 1
    size = sum(rows * columns for rows, columns in linears) * blocks
    # bytes of a weight; without zeros half of the values, or of the codes with scales, and a bit for each place
    each = {"dense": width, "packed": width / 2 + 1 / 8, "int4": 3 / 8 + width / GROUP}[variant.base]
    weights = size * (each + (width if variant.cached else 0))
    total = weights + trained(variant, linears, setting.rank) * blocks * (16 if optimizer else 8)
    numbers, mask, outputs = variant.saved
    extra = sum(r * c * (numbers * width + mask) + r * tokens * outputs * width for r, c in linears)
    if variant.method == "lora":
        extra += len(linears) * setting.rank * tokens * width
    own = _activations(shape, setting) + extra
    if setting.scope == "model":
        total += (1 if shape.tied else 2) * shape.vocabulary * shape.hidden * width  # embeddings and head
    total += shape.hidden * tokens * width * blocks + own if setting.checkpointing else own * blocks
    makes = variant.base == "int4" or variant.method not in (None, "lora")  # weights, for a product
    temporary = max(r * c for r, c in linears) * width if makes else 0
    return int(total + temporary)


def _activations(shape: Shape, setting: Setting) -> int:
    """What a block keeps for its backward, with fused norms and SwiGLU; for one linear, X, Y and their gradients."""
    q, kv, h, i = shape.heads * shape.head_width, shape.kv_heads * shape.head_width, shape.hidden, shape.intermediate
    numbers = 2 * (h + i) if setting.scope == "linear" else 4 * h + 2 * q + 2 * kv + 3 * i
    return numbers * setting.tokens * setting.width

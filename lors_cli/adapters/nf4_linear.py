"""A frozen linear whose weight is kept in NF4, by bitsandbytes (CUDA and CPU): 0.516 bytes a weight.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314: four-bit normal floats in
groups of 64 with a scale each, the scales themselves in 8 bits (double quantisation). A product dequantises the weight
to the dtype that it had before, in forward and in backward, so the dense one never stays.
"""

from importlib.util import find_spec
from typing import Any

from torch import nn

BACKEND = "bitsandbytes"
# a code of 4 bits; an 8-bit scale for every 64 weights; a float32 scale for every 256 of those
BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)


def is_installed() -> bool:
    """Whether the library for four bits is installed."""
    return find_spec(BACKEND) is not None


def nf4_linear(linear: nn.Linear) -> nn.Linear:
    """A linear of the same shape (R, C) that multiplies with the weight rounded to NF4; its bias is shared.

    Raises:
        ImportError: bitsandbytes is not installed.

    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    quantised: Any = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=linear.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    weight: Any = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    quantised.weight = weight.to(linear.weight.device)  # moving it to a device is what quantises it
    quantised.bias = linear.bias
    # where a CPU has it, the library would repack the weight for inference in the first pass that needs no gradient
    quantised.support_avx512bf16_for_cpu = False
    return quantised  # type: ignore[no-any-return]

"""Rotary frequencies of a GGUF file, in transformers' words.

llama.cpp keeps llama3's scaling only as what the frequencies are divided by, one number for each pair of dimensions
(``rope_freqs.weight``), and longrope's as two such lists. The scaling's own parameters are found from them, and
transformers' frequencies are compared with what the file says.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lors_cli.models import sizes

LLAMA3, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (LLAMA3, LONG, SHORT)
THETA = 10000.0  # llama.cpp's where a file has none
KNOWN = {
    *("freq_base", "dimension_count", "scale_linear"),
    *(f"scaling.{name}" for name in ("type", "factor", "original_context_length", "finetuned", "attn_factor")),
}
PUBLISHED = (1.0, 4.0, 8192)  # low and high frequency factor, original context: of all Llama 3.x
PUBLISHED_FACTORS = (8.0, 32.0)  # where no frequency is so low that it is divided by the whole factor
TOLERANCE = 1e-5  # the file's numbers are rounded to float32


class Rope:
    """The keys under ``rope.`` and the tensors `FACTORS` of a file; `refused` makes the error that names one."""

    def __init__(self, given: dict[str, Any], factors: dict[str, Tensor], refused: Callable[[str], Exception]) -> None:
        self._given = {name.removeprefix("rope."): value for name, value in given.items() if name.startswith("rope.")}
        self._factors, self._refused = factors, refused

    def settle(self, config: Any) -> None:
        """Give the config the file's rotary parameters.

        Raises:
            RequestError: they cannot be said in transformers' words.

        """
        if unknown := sorted(self._given.keys() - KNOWN):
            raise self._refused(f"rope.{unknown[0]} = {self._given[unknown[0]]}, which is unknown,")
        parameters = getattr(config, "rope_parameters", None)
        if parameters is None:
            if self._given or self._factors:
                raise self._refused(f"rotary settings for {type(config).__name__}, which has none,")
            return
        # models that mix two kinds of attention scale that over the whole text
        whole = parameters.get("full_attention", parameters)
        width = sizes.head_width(config)
        turned = int(self._given.get("dimension_count", width))
        if turned != int(width * self._share(config, whole)):
            if not hasattr(config, "partial_rotary_factor") and "partial_rotary_factor" not in whole:
                raise self._refused(f"rope.dimension_count = {turned} of {width}")
            whole["partial_rotary_factor"] = turned / width
        whole["rope_theta"] = float(self._given.get("freq_base", THETA))
        whole |= {"rope_type": "default", **self._scaling(config, whole, turned)}
        config.rope_parameters = parameters
        if hasattr(config, "original_max_position_embeddings"):  # Phi 3 has it twice, and this one counts
            config.original_max_position_embeddings = int(
                whole.get("original_max_position_embeddings", config.max_position_embeddings)
            )

    @staticmethod
    def _share(config: Any, whole: dict[str, Any]) -> float:
        return float(whole.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0)

    def _scaling(self, config: Any, whole: dict[str, Any], turned: int) -> dict[str, Any]:
        kind = self._given.get("scaling.type", "linear" if "scale_linear" in self._given else "none")
        factor = float(self._given.get("scaling.factor", self._given.get("scale_linear", 1.0)))
        original = self._given.get("scaling.original_context_length")
        attention = self._given.get("scaling.attn_factor")
        if attention not in (None, 1.0) and LONG not in self._factors:
            raise self._refused(f"rope.scaling.attn_factor = {attention}")
        if self._factors.keys() == {LLAMA3} and kind in ("none", "llama3"):
            return self._llama3(self._factors[LLAMA3].flatten().double(), whole["rope_theta"], turned, original)
        if self._factors.keys() == {LONG, SHORT} and kind in ("none", "longrope") and original:
            lists = {"long_factor": self._factors[LONG], "short_factor": self._factors[SHORT]}
            found: dict[str, Any] = {
                name: [float(f"{value:.8g}") for value in tensor.flatten()] for name, tensor in lists.items()
            }
            found |= {"rope_type": "longrope", "original_max_position_embeddings": int(original)}
            found["factor"] = config.max_position_embeddings / int(original)
            return found | ({"attention_factor": float(attention)} if attention is not None else {})
        if self._factors:
            raise self._refused(f"{min(self._factors)} with rope.scaling.type {kind!r}")
        if kind == "none" or factor == 1.0:
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn" and original:
            return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(original)}
        raise self._refused(f"rope.scaling.type = {kind!r}")

    def _llama3(self, divided_by: Tensor, theta: float, turned: int, original: int | None) -> dict[str, Any]:
        """The parameters with which transformers divides the frequencies by the numbers in the file, float64 (pairs,).

        A frequency f of wavelength 2 pi / f is divided by 1 / ((1 - s) / factor + s), s = (C f / 2 pi - low) /
        (high - low) between 0 and 1, C the original context (Llama 3.1). Only C / (high - low) and low / (high - low)
        can be seen in the numbers, so `original` or low is taken as published.
        """
        frequencies = 1 / theta ** (torch.arange(0, turned, 2, dtype=torch.float64) / turned)
        low, high, published = PUBLISHED
        factor = round(float(divided_by.max()), 4)
        found = [(one, low, high, int(original or published)) for one in (factor, *PUBLISHED_FACTORS)]
        between = (divided_by > 1 + 1e-4) & (divided_by < factor * (1 - 1e-4))
        if int(between.sum()) > 1:
            s = (1 / divided_by[between] - 1 / factor) / (1 - 1 / factor)
            turns = torch.stack([frequencies[between] / (2 * torch.pi), -torch.ones_like(s)], dim=1)
            slope, offset = torch.linalg.lstsq(turns, s[:, None]).solution.flatten().tolist()
            if slope > 0 and offset > 0:
                high = round(low + low / offset, 4)
                found.append((factor, low, high, round(slope * (high - low))))
        for factor, low, high, context in found:
            names = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": context}
            scaling = {"rope_type": "llama3", "factor": factor, **names}
            again = frequencies / _frequencies(theta, turned, scaling)
            if again.shape == divided_by.shape and torch.allclose(again, divided_by, rtol=TOLERANCE, atol=0):
                return scaling
        raise self._refused(f"{LLAMA3}, whose numbers are not those of llama3's scaling,")


def _frequencies(theta: float, turned: int, scaling: dict[str, Any]) -> Tensor:
    """The frequencies that transformers computes from llama3's parameters, float64 (pairs,)."""
    config = LlamaConfig(
        hidden_size=turned,
        num_attention_heads=1,
        head_dim=turned,
        max_position_embeddings=2**31,  # does not count here, but should be the longer one
        rope_parameters={"rope_theta": theta, **scaling},
    )
    inverse: Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    return inverse.double()

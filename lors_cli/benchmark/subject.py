"""What is measured: one linear, one block or a whole model of a named shape, with random sparse weights.

All variants share the weights; each has its own modules around them.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.effective_cache import EffectiveCache
from lors_cli.adapters.int4_linear import Int4Linear
from lors_cli.adapters.replace import replace_linears
from lors_cli.benchmark.roofline import Setting, Shape
from lors_cli.benchmark.variants import GROUP, Variant
from lors_cli.errors import nearest, request_error
from lors_cli.models import linears, sizes
from lors_cli.quantization import rtn
from lors_cli.quantization.grid import Grid
from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern

# hidden, intermediate, heads, key/value heads, blocks, vocabulary, tied
SHAPES = {
    "smollm2-135m": (576, 1536, 9, 3, 30, 49152, True),
    "tinyllama-1.1b": (2048, 5632, 32, 4, 22, 32000, False),
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000, False),
    "llama-3-8b": (4096, 14336, 32, 8, 32, 128256, False),
    "llama-3-70b": (8192, 28672, 64, 8, 80, 128256, False),
}
SCOPES = ("linear", "block", "model")


def read_shape(name: str, key: str = "--shape") -> Any:
    """The transformers config of a named shape, or of a config.json or its directory; `key` is its option.

    Raises:
        RequestError: there is none, or it is not of Llama's kind.

    """
    if name in SHAPES:
        hidden, intermediate, heads, kv_heads, blocks, vocabulary, tied = SHAPES[name]
        return AutoConfig.for_model(
            "llama",
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=blocks,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
            max_position_embeddings=2**17,
        )
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    remedy = nearest(name, tuple(SHAPES))
    if not path.is_file():
        raise request_error(key, f"{', '.join(SHAPES)}, or a config.json", name, remedy)
    try:
        config = AutoConfig.for_model(**json.loads(path.read_text()))
        Shape.of(config)
        if any((getattr(config, count, None) or 0) > 1 for count in linears.EXPERT_COUNTS):
            raise ValueError("a mixture of experts, whose experts are not linears")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise request_error(key, "a config.json of Llama's kind", str(error).splitlines()[0], remedy, path) from None
    return config


def build(config: Any, scope: str, dtype: torch.dtype, device: torch.device, pattern: Pattern) -> nn.Module:
    """Random weights of the asked scope, with zeros in the linears of the blocks."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    if scope != "model":
        config.num_hidden_layers = 1
        config.vocab_size, config.tie_word_embeddings, config.pad_token_id = 8, True, None
    shape = Shape.of(config)
    with torch.device("meta"):
        model: nn.Module
        if scope == "linear":
            model = nn.Sequential(nn.Linear(shape.hidden, shape.intermediate, bias=False, dtype=dtype))
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    buffers = [name for name, _ in model.named_buffers()]
    model = _materialised(model, device)
    if buffers:  # rotary frequencies are computed, not random
        fresh = AutoModelForCausalLM.from_config(_tiny(config), dtype=dtype)
        for name in buffers:
            place, _, own = name.rpartition(".")
            model.get_submodule(place)._buffers[own] = fresh.get_buffer(name).to(device)
    if scope != "linear":
        model.tie_weights()  # type: ignore[operator]
    model.config = config  # type: ignore[assignment]
    for name in names(model, scope):
        weight = model.get_parameter(f"{name}.weight")
        with torch.no_grad():
            # filled, not multiplied: a -0.0 is not a pruned weight, and packing would keep it
            weight.masked_fill_(~mask.keep_largest(torch.rand(weight.shape, device=device), pattern, per_row=True), 0)
    return model.requires_grad_(False).train()


def _materialised(model: nn.Module, device: torch.device) -> nn.Module:
    model = model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1) if parameter.dim() == 1 else parameter.normal_(std=0.02)
    return model


def _tiny(config: Any) -> Any:
    """A model with the same rotations and hardly any weights."""
    config = copy.deepcopy(config)
    config.head_dim = sizes.head_width(config)
    config.num_hidden_layers, config.vocab_size, config.intermediate_size, config.pad_token_id = 1, 8, 8, None
    return config


def names(model: nn.Module, scope: str) -> list[str]:
    """The linears that the variants adapt."""
    return ["0"] if scope == "linear" else list(linears.all_linears(model))


def rounded(linear: nn.Linear) -> Int4Linear:
    """The linear with codes of four bits on a symmetric grid, in groups of 128 or what divides its inputs."""
    weight = linear.weight.detach()
    grid = Grid(4, math.gcd(GROUP, weight.shape[1]))
    return Int4Linear(rtn.quantize(weight, None, grid, weight.dtype), linear.bias, weight.dtype)


class Subject:
    """One variant around the shared weights of `base`: `run` does forward and backward of a unit of work.

    A cached variant's unit of work is a window of `setting.accumulation` micro-batches, any other's is one.
    """

    def __init__(self, base: nn.Module, variant: Variant, setting: Setting) -> None:
        shared = {id(parameter): parameter for parameter in base.parameters()}
        self.model = cast(Any, copy.deepcopy(base, shared))
        self.setting, self.variant = setting, variant
        self.adapters: dict[str, Adapter] = {}
        if variant.method:
            kind = METHODS[variant.method].formulation(variant.formulation).adapter
            options = {"rank": setting.rank, "alpha": setting.rank, **variant.options}
            adapted = names(base, setting.scope)
            if variant.base == "int4":
                for name in adapted:
                    self.model.set_submodule(name, rounded(self.model.get_submodule(name)))
            self.adapters = replace_linears(self.model, adapted, kind, base=variant.base, **options)
            with torch.no_grad():
                for adapter in self.adapters.values():
                    for tensor in adapter.tensors().values():
                        tensor.normal_(std=0.01)
        self.micro_batches = setting.accumulation if variant.cached else 1
        self.cache = EffectiveCache()
        if variant.cached:
            self.cache.serve(self.adapters, next(base.parameters()).dtype)  # type: ignore[arg-type]
            self.cache.allot(self.cache.bytes)
        if variant.method is None and setting.scope == "model":
            self.model.enable_input_require_grads()  # without anything to train there would be no backward
        if setting.checkpointing and setting.scope != "linear":
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def run(self, inputs: Tensor, target: Tensor | None, micro_batches: int | None = None) -> None:
        """One unit of work, as an optimiser step sees it: new adapters at first, no gradients left at the end."""
        self.renew()
        for _ in range(micro_batches or self.micro_batches):
            self.backward(self.forward(inputs, target), target)
        self.drop_gradients(inputs)

    def forward(self, inputs: Tensor, target: Tensor | None) -> Tensor:
        """The loss of a model, the output of a linear or a block."""
        if self.setting.scope == "linear":
            output: Tensor = self.model(inputs)
        elif self.setting.scope == "block":
            output = self.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        else:
            output = self.model(input_ids=inputs, labels=inputs, use_cache=False).loss
        return output

    def backward(self, output: Tensor, target: Tensor | None) -> None:
        """Run the backward from the loss, or from the output with `target` as its gradient."""
        if output.requires_grad:
            output.backward(target)

    def renew(self) -> None:
        """Make kept effective weights outdated, as an optimiser's update does."""
        with torch.no_grad():
            for adapter in self.adapters.values():
                for tensor in adapter.tensors().values():
                    tensor.mul_(1)

    def drop_gradients(self, inputs: Tensor) -> None:
        """Forget every gradient."""
        inputs.grad = None
        for adapter in self.adapters.values():
            for tensor in adapter.tensors().values():
                tensor.grad = None

    def resident_bytes(self) -> int:
        """Weights and trainable numbers."""
        storages = [parameter.untyped_storage() for parameter in self.model.parameters()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def inputs_for(
    model: nn.Module, setting: Setting, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Random inputs of a micro-batch, and the gradient of its output where there is no loss."""
    generator = torch.Generator(device).manual_seed(1)
    size = setting.batch_size, setting.sequence_length
    if setting.scope == "model":
        vocabulary = model.config.vocab_size  # type: ignore[union-attr]
        return torch.randint(vocabulary, size, generator=generator, device=device), None  # type: ignore[arg-type]

    def random(width: int) -> Tensor:
        return torch.randn(*size, width, generator=generator, device=device, dtype=dtype)

    shape = Shape.of(model.config)
    return random(shape.hidden).requires_grad_(), random(
        shape.intermediate if setting.scope == "linear" else shape.hidden
    )

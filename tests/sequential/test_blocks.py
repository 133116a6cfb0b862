"""Blocks streamed from shards against the whole model, and what of them is in memory."""

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.errors import LorsError, RequestError
from lors_cli.models import linears, load, weights
from lors_cli.sequential import replay
from lors_cli.sequential.blocks import Blocks
from tests.sequential.test_replay import ARCHITECTURES, COMMON

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "llama-untied": {"model_type": "llama", "tie_word_embeddings": False},
    **{name: ARCHITECTURES[name] for name in ("llama-tied", "llama-3.1", "qwen2", "gemma2", "phi3", "opt")},
}


def save(path: Path, name: str, dtype: torch.dtype = torch.float32, shard: str = "20KB") -> Path:
    """A random model with everything random, biases and norms too, in several shards."""
    torch.manual_seed(0)
    settings = {"model_type": name, **COMMON, "num_hidden_layers": 4, **MODELS[name]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    return path


def stream(path: Path, dtype: torch.dtype = torch.float32) -> Blocks:
    skeleton = load.skeleton(path, str(dtype).removeprefix("torch."))
    return Blocks(skeleton, weights.open_weights(path, skeleton, "model"), dtype, CPU)


@torch.no_grad()
def whole(path: Path, windows: dict[int, Tensor], dtype: torch.dtype) -> list[list[Tensor]]:
    """What every block of the loaded model returns, for every window."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    outputs: list[list[Tensor]] = [[] for _ in linears.find_blocks(model)[1]]
    for kept, block in zip(outputs, linears.find_blocks(model)[1], strict=True):
        block.register_forward_hook(lambda _m, _i, out, to=kept: to.append(out[0] if isinstance(out, tuple) else out))
    for ids in windows.values():
        model(input_ids=ids, use_cache=False)
    return outputs


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=["float32", "bfloat16", "bfloat16-as-float32"],
)
@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_streamed_states_are_those_of_the_whole_model(
    name: str, stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = save(tmp_path, name, stored)
    assert len(list(path.glob("*.safetensors"))) > 2
    windows = dict(enumerate(torch.randint(1, 64, (3, 16)).split(1)))
    blocks = stream(path, dtype)
    states: dict[int, Tensor] = {}
    with blocks.embeddings():
        calls = replay.capture(blocks.model, windows, states.__setitem__)
    for index, expected in enumerate(whole(path, windows, dtype)):
        with blocks.loaded(index) as block:
            for window in windows:
                states[window] = calls.run(block, index, window, states[window])
                torch.testing.assert_close(states[window], expected[window], rtol=0, atol=0)
    assert len(blocks) == 4


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "opt"])
def test_only_what_is_at_work_has_values(name: str, tmp_path: Path) -> None:
    blocks = stream(save(tmp_path, name))
    model, stored = blocks.model, weights.open_weights(tmp_path, blocks.model, "model")

    def real() -> set[str]:
        return {key for key, parameter in model.named_parameters() if not parameter.is_meta}

    names = set(dict(model.named_parameters()))
    in_blocks = {key for key in names if key.startswith(f"{blocks.prefix}.")}
    assert real() == set()
    with blocks.embeddings():
        assert real() == names - in_blocks - {"lm_head.weight"}
        for key in real():
            assert torch.equal(model.get_parameter(key), stored.tensor(key))
    assert real() == set()
    for index in range(len(blocks)):
        with blocks.loaded(index) as block:
            own = {f"{blocks.prefix}.{index}.{key}" for key, _ in block.named_parameters()}
            assert real() == own
            assert all(torch.equal(model.get_parameter(key), stored.tensor(key)) for key in own)
        assert real() == set()
    with pytest.raises(ZeroDivisionError), blocks.loaded(0):
        raise ZeroDivisionError
    assert real() == set()
    with pytest.raises(ZeroDivisionError), blocks.embeddings():
        raise ZeroDivisionError
    assert real() == set()


class Watched(Blocks):
    """Knows which blocks' arrays are still in memory: what `_read` copied is weakly held."""

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> "Watched":
        self.arrays: list[tuple[int, weakref.ref[Any]]] = []
        self.reads: list[int] = []
        made = torch.from_numpy

        def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
            self.arrays.append((self.reads[-1], weakref.ref(array)))  # the storage of the tensor holds the array
            return made(array)

        monkeypatch.setattr(torch, "from_numpy", from_numpy)
        return self

    def _read(self, index: int) -> dict[str, Tensor]:
        assert threading.current_thread().name.startswith("read-ahead")
        self.reads.append(index)
        return super()._read(index)

    def alive(self) -> list[int]:
        """For each array that is still there, its block; once what is being read has come."""
        for future in list(self._ahead.values()):
            future.result()
        return [index for index, array in self.arrays if array() is not None]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    path = save(tmp_path, "llama-tied")
    skeleton = load.skeleton(path, "float32")
    made = Watched(skeleton, weights.open_weights(path, skeleton, "model"), torch.float32, CPU)
    return made.watch(monkeypatch)


def test_at_most_two_blocks_are_in_memory_and_each_is_read_once(watched: Watched) -> None:
    count = len(list(watched._list[0].state_dict()))
    for index in range(4):
        with watched.loaded(index):
            assert set(watched.alive()) == {index, index + 1} - {4}
            assert len(watched.alive()) == count * (2 if index < 3 else 1)
        assert set(watched.alive()) == {index + 1} - {4}
    assert watched.reads == [0, 1, 2, 3]


def test_going_on_at_a_later_block_reads_no_other(watched: Watched) -> None:
    for index in (2, 3):
        with watched.loaded(index):
            pass
    assert watched.reads == [2, 3]
    with watched.loaded(0):  # a second phase
        assert set(watched.alive()) == {0, 1}


def test_a_replaced_weight_is_freed(watched: Watched) -> None:
    with watched.loaded(0) as block:
        count = len(list(block.state_dict()))
        for linear in linears.block_linears(block).values():
            linear.weight.data = torch.zeros_like(linear.weight.data)
        assert watched.alive().count(0) == count - 7


def test_what_a_visit_changes_is_gone_with_the_block(tmp_path: Path) -> None:
    blocks = stream(save(tmp_path, "llama-tied"))
    with blocks.loaded(1) as block:
        before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        for parameter in block.parameters():
            parameter.data = torch.zeros_like(parameter)
    with blocks.loaded(1) as block:
        assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight"])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, name: str, wrong: float) -> None:
    (file,) = save(tmp_path, "llama-tied", shard="5GB").glob("*.safetensors")
    content = load_file(file)
    content[name].view(-1)[-1] = wrong
    save_file(content, file, metadata={"format": "pt"})
    blocks = stream(tmp_path)
    for index in (0, 1, 3):
        with blocks.loaded(index):
            pass
    with pytest.raises(LorsError, match=f"^{name}: NaN or infinity"), blocks.loaded(2):
        raise AssertionError("loaded")
    assert all(parameter.is_meta for parameter in blocks.model.parameters())


TINY_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}


@pytest.mark.parametrize("name", list(TINY_EXPERTS))
def test_a_mixture_of_experts_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **COMMON, **TINY_EXPERTS[name]))
    with pytest.raises(RequestError, match=r"a mixture of 4 experts") as caught:
        linears.check_prunable(model, "prune.input")
    assert caught.value.problems[0].key == "prune.input"


@pytest.mark.parametrize("name", list(MODELS))
def test_a_dense_model_is_not_refused(name: str) -> None:
    settings = {"model_type": name, **COMMON, **MODELS[name]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    linears.check_prunable(model, "model")


def test_experts_that_no_config_counts_are_seen_by_their_shape() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON))
        model.model.layers[1].mlp.experts = nn.Parameter(torch.zeros(4, 32, 48))
    with pytest.raises(RequestError, match=r"3-D weights \(1\.mlp\.experts\)"):
        linears.check_prunable(model, "model")

"""Tuning the blocks of the pico model, against plain autograd in float64 and against whole models."""

import copy
import gc
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.config.prune import TuneBlocks
from lors_cli.data import builtin
from lors_cli.models import linears
from lors_cli.sequential import tune
from lors_cli.sequential.record import Record
from lors_cli.sequential.states import States
from lors_cli.sequential.targets import Targets
from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern
from tests.sequential.common import make_loop

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
WINDOWS = dict(enumerate(torch.arange(64).view(4, 1, 16)))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model whose blocks change the states much."""
    return make_model(tmp_path_factory.mktemp("wide") / "model", initializer_range=0.1)


@torch.no_grad()
def prune(block: nn.Module, names: list[str]) -> dict[str, nn.Linear]:
    chosen = {name: linear for name, linear in linears.block_linears(block).items() if name in names}
    for linear in chosen.values():
        keep = keep_largest(linear.weight.abs(), Pattern.parse("2:4"), per_row=True)
        linear.weight.data = linear.weight.masked_fill(~keep, 0)
    return chosen


def oracle(
    block: nn.Module, pruned: list[str], angles: tuple[Tensor, Tensor], entering: Tensor, target: Tensor, rate: float
) -> nn.Module:
    """Five steps on the whole block in float64, where each pruned weight is the product of a parameter and its mask."""
    block, steps = copy.deepcopy(block).double().requires_grad_(True), 5
    masks = {name: (p != 0).double() for name, p in block.named_parameters() if name.removesuffix(".weight") in pruned}
    free = {name: p for name, p in block.named_parameters() if name in masks or "norm" in name}
    adam = torch.optim.Adam(free.values(), rate)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        used = {name: p * masks.get(name, 1) for name, p in free.items()}
        out = torch.func.functional_call(block, used, (entering,), {"position_embeddings": angles})
        adam.zero_grad()
        ((out - target).square().sum() / target.square().sum()).backward()
        adam.step()
    for name, kept in masks.items():
        free[name].data *= kept
    return block


def test_the_steps_are_those_of_plain_autograd(model: Path, tmp_path: Path) -> None:
    """Of all windows at once, on the block's own inputs; one linear is left dense."""
    loop = make_loop(model, WINDOWS, tmp_path)
    pruned = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    targets = Targets(States(tmp_path, list(WINDOWS), (16, 32), torch.float32, CPU, "targets", durable=False))
    options = TuneBlocks(steps=5, learning_rate=3e-3, batch_size=4)
    whole = AutoModelForCausalLM.from_pretrained(model).double().requires_grad_(False)
    entering = whole.get_input_embeddings()(torch.arange(64).view(4, 16))
    angles = whole.model.rotary_emb(entering, torch.arange(16)[None])

    def visit(index: int, block: nn.Module) -> dict[str, Any]:
        loop.aim(block)
        wanted = torch.cat([loop.target(window) for window in WINDOWS]).double()
        chosen = prune(block, pruned)
        if index == 0:
            expected = oracle(block, pruned, angles, entering, wanted, 3e-3)
        before = {name: tensor.detach().clone() for name, tensor in block.named_parameters()}
        facts = tune.tune(block, chosen, loop, options, seed=0)
        after = dict(block.named_parameters())
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
        assert changed == {f"{name}.weight" for name in pruned} | norms
        for name in (f"{name}.weight" for name in pruned):
            now = after[name].detach()
            assert (now == 0).equal(before[name] == 0)
            assert not torch.signbit(now[now == 0]).any()
        if index == 0:
            for name, tensor in expected.named_parameters():
                torch.testing.assert_close(after[name].double(), tensor, rtol=1e-4, atol=1e-6)
        return facts

    loop.run("phase", visit, 1, targets=targets)
    for facts in loop.record.done("phase"):
        assert facts["loss_after"] < 0.95 * facts["loss_before"]
        assert not facts["kept"]


def test_a_weight_that_would_round_to_zero_stays() -> None:
    before = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.bfloat16)
    tuned = torch.tensor([0.0, 1e-45, -0.0, 2.5])
    assert tune._rounded(tuned, before, sparse=True).tolist() == [0.0, 1.0, 2.0, 2.5]
    assert tune._rounded(tuned[1:], before[1:], sparse=False).tolist()[2] == 2.5


def saved(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(directory / "model.safetensors")
    return tensors


@torch.no_grad()
def states(directory: Path) -> list[Tensor]:
    """What enters each block and leaves the last one on the calibration text of the tests, before the last norm."""
    ids = AutoTokenizer.from_pretrained(directory)("\n\n".join(builtin.texts("train")), add_special_tokens=False)
    tokens = torch.tensor(ids["input_ids"][: 8 * 32]).view(8, 32)
    whole = AutoModelForCausalLM.from_pretrained(directory)
    seen: list[Tensor] = []
    for block in whole.model.layers:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    whole.model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    whole(tokens)
    return seen


@pytest.mark.parametrize("sequential", ["block", "linear"])
def test_the_losses_are_those_of_the_saved_model(
    lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path, sequential: str
) -> None:
    tuned = {"steps": 12, "learning_rate": 3e-3, "batch_size": 3}
    for target in ("layer", "dense"):
        asked = {"prune__tune_blocks": {**tuned, "target": target}, "prune__sequential": sequential}
        config = write_config(model=str(model), **asked)
        lors("prune", config, f"output_dir={tmp_path}/{target}")
    dense = states(model)
    for target, last in (("layer", 0), ("dense", 1)):
        ours = states(tmp_path / target / "pruned")
        facts = json.loads((tmp_path / target / "pruned/lors.json").read_text())["tuning"]
        for number in range(last + 1):
            loss = float((ours[number + 1] - dense[number + 1]).square().sum() / dense[number + 1].square().sum())
            block = facts["blocks"][f"model.layers.{number}"]
            assert block["loss_after"] == pytest.approx(loss, rel=1e-3)
            assert block["loss_after"] < block["loss_before"]
        line = next(
            line for line in (tmp_path / target / "lors.log").read_text().splitlines() if "layers.0: tuned" in line
        )
        assert f"to {facts['blocks']['model.layers.0']['loss_after']:.6f}, " in line


def test_what_is_not_pruned_is_not_tuned(lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path) -> None:
    """A block without pruned linears stays as it was, in a pruned one a skipped linear."""
    skip = [{"match": "model.layers.0.*", "skip": True}, {"match": "*.up_proj", "skip": True}]
    lors("prune", write_config(model=str(model), prune__overrides=skip, prune__tune_blocks={"steps": 2}))
    before, after = saved(model), saved(tmp_path / "run/pruned")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    tuned = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "layernorm")
    assert changed == {name for name in before if "layers.1." in name and any(part in name for part in tuned)}
    assert list(json.loads((tmp_path / "run/pruned/lors.json").read_text())["tuning"]["blocks"]) == ["model.layers.1"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_keep_their_support(
    lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path, dtype: str
) -> None:
    """Wanda's mask is the same in the first block, which sees the same states."""
    config = write_config(model=str(model), dtype=dtype)
    lors("prune", config, f"output_dir={tmp_path}/plain")
    lors("prune", config, 'prune.tune_blocks={"steps": 8, "learning_rate": 3e-3}')
    plain, tuned = saved(tmp_path / "plain/pruned"), saved(tmp_path / "run/pruned")
    for name in (name for name in plain if "layers.0" in name and "proj" in name):
        assert torch.equal(plain[name] != 0, tuned[name] != 0)
        assert not torch.equal(plain[name], tuned[name])
        assert not torch.signbit(tuned[name][tuned[name] == 0]).any()
    blocks = json.loads((tmp_path / "run/pruned/lors.json").read_text())["tuning"]["blocks"]
    assert all(facts["loss_after"] < facts["loss_before"] for facts in blocks.values())


def test_a_block_that_gets_worse_stays_as_it_was(
    lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path
) -> None:
    config = write_config(model=str(model))
    lors("prune", config, f"output_dir={tmp_path}/plain")
    for rate in (1e-1, 1e3):
        said = lors("prune", config, f"prune.tune_blocks={{steps: 4, learning_rate: {rate}}}", "--force").stderr
        assert "model.layers.0: stays as it was: tuning took its loss from 0." in said
        facts = json.loads((tmp_path / "run/pruned/lors.json").read_text())["tuning"]
        assert facts["kept"] == 2
        plain, tuned = saved(tmp_path / "plain/pruned"), saved(tmp_path / "run/pruned")
        assert all(torch.equal(plain[name], tuned[name]) for name in plain)


def test_biases_and_norms_of_another_architecture(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 384, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("opt", **sizes, word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    AutoTokenizer.from_pretrained(dense).save_pretrained(tmp_path / "opt")
    skip = [{"match": "*.fc1", "skip": True}]
    asked = {"prune__overrides": skip, "prune__tune_blocks": {"steps": 3, "learning_rate": 1e-3}}
    lors("prune", write_config(model=str(tmp_path / "opt"), **asked))
    before, after = saved(tmp_path / "opt"), saved(tmp_path / "run/pruned")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in before if ".layers." in name and "fc1" not in name}
    # a bias of the keys moves every score of a query alike, so it has no gradient but that of rounding
    assert inside - changed <= {name for name in inside if "k_proj.bias" in name}
    assert changed <= inside


def test_memory_does_not_grow_from_block_to_block(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """The bytes of all tensors there are while a block is tuned, and after it."""
    directory = make_model(tmp_path / "deep", num_hidden_layers=6)
    asked = {"prune__tune_blocks": {"steps": 2, "target": "dense"}, "prune__update": "least_squares"}
    held: dict[str, list[int]] = {"step": [], "add": []}

    def counted(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # those of other tests may be fakes, which have no storage
                tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
                tensors = [one for one in tensors if one.device.type == "cpu"]
            storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
            held[name].append(sum(storages.values()))
            return original(*args)

        monkeypatch.setattr(owner, name, call)

    counted(torch.optim.Adam, "step")
    counted(Record, "add")
    lors("prune", write_config(model=str(directory), **asked))
    assert (len(held["step"]), len(held["add"])) == (12, 6)
    for found in held.values():  # the next block is read ahead while one is worked on, but not at the end
        assert max(found[len(found) // 2 :]) <= 1.02 * max(found[: len(found) // 2])


def test_magnitude_with_calibration_is_tuned(
    lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path
) -> None:
    tuned = {"prune__tune_blocks": {"steps": 4, "learning_rate": 3e-3}}
    said = lors("prune", write_config(model=str(model), prune__method="magnitude", **tuned)).stderr
    assert "calibration is not used" not in said
    facts = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    assert facts["calibration"]["windows"] == 8
    assert len(facts["tuning"]["blocks"]) == 2

"""Adapters in training loops that are not ours: a plain one, accelerate's, transformers' Trainer, TRL's SFTTrainer."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.lors import LoRS
from lors_cli.api import attach, load, load_adapter, save_adapter, start_from_gradient
from lors_cli.artifacts import adapter_file, files
from lors_cli.errors import LorsError
from lors_cli.models import identity
from tests.stages.test_prune import weights

FILES = (adapter_file.CONFIG, adapter_file.WEIGHTS)
Merge = Callable[..., None]


@pytest.fixture
def model(pruned: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(pruned)


@pytest.fixture
def merge(lors: Callable[..., Result], write_config: Callable[..., Path], pruned: Path, tmp_path: Path) -> Merge:
    return partial(merge_and_compare, lors, write_config, pruned, tmp_path)


def merge_and_compare(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    pruned: Path,
    tmp_path: Path,
    adapter: Path,
    *options: str,
) -> None:
    """Merge an adapter by the command, and compare the zeros of the files."""
    lors("merge", write_config(merge={"input": str(pruned), "adapter": str(adapter)}), *options)
    before, after = weights(pruned), weights(tmp_path / "run/merged")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight == 0, after[name] == 0), name
        assert not torch.equal(weight, after[name]), name


def batch(seed: int = 1) -> dict[str, Tensor]:
    ids = torch.randint(4, 384, (2, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def step(model: Any, steps: int = 5, backward: Callable[[Tensor], Any] = Tensor.backward) -> list[float]:
    """Plain steps; the losses before each."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch()).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def weights_of(directory: Path) -> bytes:
    return (directory / adapter_file.WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", list(METHODS))
def test_a_plain_loop(model: Any, pruned: Path, merge: Merge, tmp_path: Path, method: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    assert attach(model, method=method, rank=4, alpha=10 / 3) is model
    assert len([m for m in model.modules() if isinstance(m, Adapter)]) == 14
    losses = step(model)
    assert losses[-1] < losses[0] - 0.01
    for name, tensor in model.named_parameters():
        own = name.rsplit(".", 1)[-1] in METHODS[method].adapter.parameter_names
        assert tensor.requires_grad == own
        assert own or torch.equal(tensor, before[name.replace(".linear.", ".")])

    save_adapter(model, tmp_path / "deep/adapter")
    assert {path.name for path in (tmp_path / "deep").rglob("*")} == {"adapter", *FILES}
    ids = batch(2)["input_ids"]
    fresh = load_adapter(AutoModelForCausalLM.from_pretrained(pruned), tmp_path / "deep/adapter")
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, model.eval()(ids).logits)
    merge(tmp_path / "deep/adapter", *([] if METHODS[method].keeps_zeros else ["merge.apply_mask=true"]))


def test_the_file_is_that_of_lors_train(model: Any, pruned: Path, tmp_path: Path) -> None:
    attach(model, method="spp", rank=4, alpha=10 / 3, dropout=0.25)
    save_adapter(model, tmp_path / "a")
    modules: Any = {n: m.tensors() for n, m in model.named_modules() if isinstance(m, Adapter)}
    (tmp_path / "b").mkdir()
    plain = AutoModelForCausalLM.from_pretrained(pruned)
    made_on = identity.of((name, tensor) for name, tensor in plain.named_parameters())  # of tied ones the first
    expected = adapter_file.AdapterFile("spp", 4, 10 / 3, modules, made_on)
    adapter_file.save(tmp_path / "b", expected, base=str(pruned), dropout=0.25)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    fresh = load_adapter(AutoModelForCausalLM.from_pretrained(pruned), tmp_path / "a")
    assert fresh.model.layers[0].mlp.up_proj.dropout.p == 0.25


def test_the_start_captures_the_gradient_of_all_batches(model: Any) -> None:
    model.double()
    dense, batches = copy.deepcopy(model), [batch(1), batch(2)]
    attach(model, rank=3, target_modules=["o_proj"])
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    model.eval()
    start_from_gradient(model, iter(batches))
    assert not model.training
    sum(dense(**b).loss for b in batches).backward()
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"):
        adapter, gradient = model.get_submodule(name), dense.get_parameter(f"{name}.weight").grad
        best = torch.linalg.svdvals(gradient)[:3].square().sum()
        torch.testing.assert_close((gradient @ adapter.lora_A.T).square().sum(), best, rtol=1e-3, atol=0)
        assert not adapter.lora_B.any()
        assert {id(adapter.lora_A), id(adapter.lora_B)} <= held

    before = adapter.lora_A.clone()
    with pytest.raises(LorsError, match="not finite"):
        start_from_gradient(model, [{**batch(), "labels": torch.full((2, 12), -100)}])
    assert torch.equal(adapter.lora_A, before)
    with pytest.raises(ValueError, match="one batch"):
        start_from_gradient(model, [])


def test_a_wrapped_or_sharded_model_saves_the_same(model: Any, tmp_path: Path, alone: None) -> None:
    attach(model, rank=4)
    step(model, 1)
    save_adapter(model, tmp_path / "plain")
    blocks = model.model.layers
    blocks[0] = torch.compile(blocks[0])
    wrapped = DistributedDataParallel(torch.compile(model))
    with pytest.raises(ValueError, match="not wrapped"):
        start_from_gradient(wrapped, [batch()])
    save_adapter(wrapped, tmp_path / "wrapped")
    blocks[0] = blocks[0]._orig_mod
    for block in blocks:
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
    assert all(hasattr(parameter, "full_tensor") for parameter in blocks.parameters())
    save_adapter(model, tmp_path / "sharded")
    with pytest.raises(ValueError, match="before fully_shard"):
        load_adapter(model, tmp_path / "sharded")
    assert weights_of(tmp_path / "plain") == weights_of(tmp_path / "wrapped") == weights_of(tmp_path / "sharded")
    step(model, 1)


def test_bf16_autocast_gradient_checkpointing_and_accelerate(model: Any, merge: Merge, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    attach(model, rank=4)
    model.gradient_checkpointing_enable()
    seen: set[torch.dtype] = set()
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda _m, _x, y: seen.add(y.dtype))
    prepared = accelerator.prepare(model)
    losses = step(prepared, backward=accelerator.backward)
    assert losses[-1] < losses[0] - 0.1
    assert seen == {torch.bfloat16}
    save_adapter(prepared, tmp_path / "adapter")
    merge(tmp_path / "adapter")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_stochastic_rounding_is_new_in_each_training_forward(model: Any) -> None:
    attach(model.bfloat16(), rank=4, stochastic=True)
    adapter = model.model.layers[0].mlp.up_proj
    adapters: list[Any] = [module for module in model.modules() if isinstance(module, LoRS)]
    assert len({int(each.rounding_seed) for each in adapters}) == 14
    first = int(adapter.rounding_seed)
    with torch.no_grad():
        adapter.lora_B.normal_(std=1e-3)
        model.eval()
        assert torch.equal(model(**batch()).loss, model(**batch()).loss)
    model.train()
    losses = [model(**batch()).loss for _ in range(2)]  # both before a backward
    assert not torch.equal(*losses)
    sum(losses).backward()
    assert int(adapter.rounding_seed) == first + 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "lorss"}, "did you mean 'lors'"),
        ({"formulation": "fusd"}, "did you mean 'fused'"),
        ({"rank": 17}, "at most 16"),
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0}, "alpha > 0"),
        ({"method": "spp", "rank": 5}, "divides"),
        ({"dropout": 0.1}, "does not have this option"),
        ({"method": "spp", "packed": True}, "does not have this option"),
        ({"spp_beta": False}, "does not have this option"),
        ({"method": "lora", "zero_init": "both"}, "does not have this option"),
        ({"method": "spp", "rank": 4, "zero_init": "beta"}, "spp_beta, spp_alpha, both, none"),
        ({"method": "spp", "rank": 4, "zero_init": "both", "spp_beta": False}, "spp_alpha, none with spp_beta=False"),
        ({"target_modules": ["q_prj"]}, "did you mean 'q_proj'"),
        ({"target_modules": "all-linear"}, "a list"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(model: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attach(model, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, Adapter) for module in model.modules())


def test_models_that_do_not_fit_are_refused(model: Any, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without"):
        save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match="not wrapped"):
        attach(nn.DataParallel(model))
    with pytest.raises(ValueError, match="none of whose linears has zeros"):
        attach(AutoModelForCausalLM.from_pretrained(dense))
    with pytest.raises(ValueError, match=r"packed: linears of which at least 0\.\d+ are zeros"):
        attach(AutoModelForCausalLM.from_pretrained(dense), packed=True, target_modules=["*"])
    attach(model, rank=4, packed=True)
    with pytest.raises(ValueError, match="attached already"):
        attach(model)


def test_adapters_that_do_not_fit_are_refused(
    model: Any, pruned: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    attach(model, rank=4, target_modules=["*.mlp.*"])
    save_adapter(model, tmp_path / "a")
    wide = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "wide", intermediate_size=128))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj \(32, 128\) needs .*; and 2 more"):
        load_adapter(wide, tmp_path / "a")
    shallow = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "shallow", num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"there is no linear model\.layers\.1"):
        load_adapter(shallow, tmp_path / "a")
    assert all(parameter.requires_grad for parameter in shallow.parameters())
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        load_adapter(shallow, tmp_path)

    def fresh(**options: Any) -> Any:
        return attach(AutoModelForCausalLM.from_pretrained(pruned), rank=4, **options)

    with pytest.raises(ValueError, match="method, rank and alpha"):
        load_adapter(fresh(alpha=8), tmp_path / "a")
    with pytest.raises(ValueError, match=r"nothing for model\.layers\.0\.self_attn\.q_proj"):
        load_adapter(fresh(), tmp_path / "a")
    packed = load_adapter(fresh(packed=True, target_modules=["*.mlp.*"]), tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(packed(**batch()).logits, model.eval()(**batch()).logits)


def test_a_model_of_any_kind_is_loaded(
    lors: Callable[..., Result], write_config: Callable[..., Path], pruned: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(pruned)
    with torch.no_grad():
        assert torch.equal(load(str(pruned))(**batch()).logits, plain(**batch()).logits)
    assert load(pruned, dtype="bfloat16").dtype == torch.bfloat16
    lors("prune", write_config(prune={"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 0}))
    smaller = attach(load(tmp_path / "run/pruned"), rank=4, target_modules=["*"])
    assert smaller.num_parameters() < plain.num_parameters()
    losses = step(smaller)
    assert losses[-1] < losses[0] - 0.01
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, LorsError)):
        load(tmp_path / "empty")


def test_a_directory_is_replaced_whole_or_not_at_all(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(model, rank=4)
    save_adapter(model, tmp_path / "out/a")
    old = weights_of(tmp_path / "out/a")
    step(model, 1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_adapter(model, tmp_path / "out/a")
    assert weights_of(tmp_path / "out/a") == old
    save_adapter(model, tmp_path / "out/a")
    assert weights_of(tmp_path / "out/a") != old
    (tmp_path / "out/a/thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        save_adapter(model, tmp_path / "out/a")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]

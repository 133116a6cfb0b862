"""The loss of a model in chunks and at once, with and without a teacher, against the slow way in float64."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from lors_cli.adapters import METHODS
from lors_cli.adapters.replace import replace_linears
from lors_cli.data.example import IGNORED
from lors_cli.models.linears import all_linears
from lors_cli.training import chunked
from lors_cli.training.loss import LanguageModelLoss, plain_head

V = 40
COMMON = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # logits that are not all the same
}
DISTILLATIONS = [(0.3, 2.0), (1.0, 1.0), (0.5, 0.7)]


def build(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A frozen pico model."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**COMMON, **changes})
    return AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False)


def adapted(**options: Any) -> Any:
    """A pico model with LoRS adapters that change what it computes."""
    model = build(**options)
    attached = replace_linears(model, list(all_linears(model)), METHODS["lors"].adapter, rank=4, alpha=4)
    for adapter in attached.values():
        for tensor in adapter.tensors().values():
            tensor.data.normal_(std=0.1)
    return model


def batch(vocabulary: int = V) -> dict[str, Tensor]:
    """Four rows of 12 tokens: all learnt, an answer in two parts, nothing learnt, and padding."""
    ids = torch.randint(1, vocabulary, (4, 12), generator=torch.Generator().manual_seed(1))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[1, [0, 1, 2, 6]] = IGNORED
    labels[2] = IGNORED
    labels[3, 7:], mask[3, 7:] = IGNORED, 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def oracle(model: Any, inputs: dict[str, Tensor], teacher: Any = None, weight: float = 0.0, T: float = 1.0) -> Tensor:
    """The mean loss per learnt token, one token after another."""
    ask = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    logits = model(**ask).logits.double()
    taught = teacher(**ask).logits.double().detach() if teacher else logits.detach()
    losses = []
    for row, labels in enumerate(inputs["labels"]):
        for place in range(len(labels) - 1):
            if labels[place + 1] != IGNORED:
                z, p = logits[row, place], F.softmax(taught[row, place] / T, 0)
                kl = F.kl_div(F.log_softmax(z / T, 0), p, reduction="sum")
                losses.append((1 - weight) * F.cross_entropy(z, labels[place + 1]) + weight * T**2 * kl)
    return torch.stack(losses).mean()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' tensors."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, trained(model)))


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize(
    "options", [{"tie_word_embeddings": True}, {}, {"kind": "phi"}], ids=["tied", "untied", "bias"]
)
def test_the_models_loss_and_the_adapters_gradients(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], in_chunks: bool
) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 7 * V)
    model = adapted(**options)
    assert (model.get_output_embeddings().bias is not None) == ("kind" in options)
    module = LanguageModelLoss(model, chunked=in_chunks)
    assert module.resolve() == in_chunks
    wanted = oracle(model, batch())
    loss = module(**batch())["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    assert module.parts == {"loss_data": loss}
    for gradient, exact in zip(gradients(loss, model), gradients(wanted, model), strict=True):
        assert exact.any()
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize(("weight", "temperature"), DISTILLATIONS)
def test_distillation(monkeypatch: pytest.MonkeyPatch, in_chunks: bool, weight: float, temperature: float) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 7 * V)
    model = adapted()
    teacher = build(seed=1, hidden_size=24, head_dim=6, tie_word_embeddings=True)
    module = LanguageModelLoss(model, chunked=in_chunks, teacher=teacher, weight=weight, temperature=temperature)
    wanted = oracle(model, batch(), teacher, weight, temperature)
    loss = module(**batch())["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    for gradient, exact in zip(gradients(loss, model), gradients(wanted, model), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(module.parts["loss_data"], oracle(model, batch()), rtol=1e-12, atol=0)
    alone = oracle(model, batch(), teacher, 1, temperature)
    torch.testing.assert_close(module.parts["loss_teacher"], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("taught", [False, True])
def test_both_ways_agree_in_float32(monkeypatch: pytest.MonkeyPatch, taught: bool) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 7 * V)
    teacher = build(seed=1, dtype=torch.bfloat16) if taught else None
    model = adapted(dtype=torch.float32)
    losses = [LanguageModelLoss(model, chunked=way, teacher=teacher)(**batch())["loss"] for way in (True, False)]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    for one, other in zip(*(gradients(loss, model) for loss in losses), strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_both_ways_round_the_logits_alone(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 7 * V)
    model = adapted(dtype=torch.float32 if autocast else torch.bfloat16)
    wanted = oracle(copy.deepcopy(model).double(), batch())
    losses = []
    for in_chunks in (True, False):
        module = LanguageModelLoss(model, chunked=in_chunks)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert module.resolve() == in_chunks
            losses.append(module(**batch())["loss"])
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0].double(), wanted, rtol=0.01, atol=0)  # what the blocks' rounding does
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    one, other = (torch.cat([gradient.flatten() for gradient in gradients(loss, model)]) for loss in losses)
    assert (one - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("in_chunks", [False, True])
def test_is_divided_by_what_the_step_has(in_chunks: bool) -> None:
    model = adapted()
    module, inputs = LanguageModelLoss(model, chunked=in_chunks), batch()
    learnt = 11 + 8 + 0 + 6
    mean = module(**inputs)["loss"]
    torch.testing.assert_close(module(**inputs, num_items_in_batch=50)["loss"], mean * learnt / 50)
    scaled = module(**inputs, num_items_in_batch=torch.tensor(100))["loss"]
    torch.testing.assert_close(scaled, mean * learnt / 100)
    scaled *= 2  # as the Trainer does with several processes
    torch.testing.assert_close(module.parts["loss_data"], mean * learnt / 100)


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
def test_nothing_learnt_is_zero_with_zero_gradients(in_chunks: bool, items: Tensor | int | None) -> None:
    model = adapted()
    inputs = batch()
    inputs["labels"][:, 1:] = IGNORED  # the first label is never predicted
    loss = LanguageModelLoss(model, chunked=in_chunks)(**inputs, num_items_in_batch=items)["loss"]
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, model))


class Made(TorchDispatchMode):
    """Notes the size of the storage of each new tensor."""

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.known = {p.untyped_storage().data_ptr() for module in known for p in module.parameters()}
        self.largest: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return output


def largest_made(vocabulary: int, *, in_chunks: bool, taught: bool) -> int:
    """Numbers in the largest tensor of a forward and backward."""
    model = adapted(vocab_size=vocabulary, dtype=torch.float32)
    teacher = build(vocab_size=vocabulary, dtype=torch.float32) if taught else None
    module = LanguageModelLoss(model, chunked=in_chunks, teacher=teacher)
    module.resolve()
    made = Made(model, *([teacher] if teacher else []))
    with made:
        gradients(module(**batch(vocabulary))["loss"], model)
    return made.largest


@pytest.mark.parametrize("taught", [False, True])
def test_no_tensor_has_the_size_of_all_logits(monkeypatch: pytest.MonkeyPatch, taught: bool) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 3000)
    tokens = batch()["input_ids"].numel()
    assert [largest_made(v, in_chunks=True, taught=taught) for v in (500, 1000)] == [3000, 3000]
    assert [largest_made(v, in_chunks=False, taught=taught) for v in (500, 1000)] == [tokens * 500, tokens * 1000]


@pytest.mark.parametrize(
    ("kind", "changes", "plain"),
    [
        ("llama", {}, True),
        ("qwen3", {"tie_word_embeddings": True}, True),
        ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 8}, True),
        ("gemma2", {"query_pre_attn_scalar": 4}, False),
        ("granite", {"logits_scaling": 1.25}, False),
        ("cohere", {}, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_model_does_to_its_logits_is_seen(
    kind: str, changes: dict[str, Any], plain: bool, dtype: torch.dtype
) -> None:
    # tiny logits, on which a soft cap does nothing, and dropout, which must not matter
    model = build(kind, dtype=dtype, initializer_range=1e-3, attention_dropout=0.5, **changes).train()
    state = torch.get_rng_state()
    assert plain_head(model) == plain
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("capped", ["student", "teacher"])
def test_a_soft_cap_is_kept_and_said_once(caplog: pytest.LogCaptureFixture, capped: str) -> None:
    gemma: dict[str, Any] = {"kind": "gemma2", "query_pre_attn_scalar": 4, "final_logit_softcapping": 2.0}
    model = adapted(**(gemma if capped == "student" else {}))
    teacher = build(**gemma, seed=1) if capped == "teacher" else None
    module = LanguageModelLoss(model, teacher=teacher)
    with caplog.at_level(logging.WARNING):
        losses = [module(**batch())["loss"] for _ in range(2)]
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("lors_cli")]
    assert message.startswith("train.chunked_loss is not for Gemma2ForCausalLM")
    wanted = oracle(model, batch(), teacher, 0.5 if teacher else 0.0)
    torch.testing.assert_close(losses[1], wanted, rtol=1e-12, atol=0)
    for gradient, exact in zip(gradients(losses[1], model), gradients(wanted, model), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-13)


def test_the_teacher_is_left_alone_and_no_part_of_the_module() -> None:
    model = adapted()
    teacher = build(seed=1).requires_grad_().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = LanguageModelLoss(model, teacher=teacher).train()
    own = {id(parameter) for parameter in module.parameters()}
    module(**batch())["loss"].backward()
    assert all(tensor.grad is not None for tensor in trained(model))
    for name, parameter in teacher.named_parameters():
        assert id(parameter) not in own
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])
    assert not any(part.training for part in teacher.modules())


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="a teacher with 40 tokens as the student, got 41"):
        LanguageModelLoss(build(), teacher=build(vocab_size=41))


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_gradients_arrive_under_ddp(alone: None) -> None:
    model = adapted()
    module = LanguageModelLoss(model, teacher=build(seed=1))
    wanted = gradients(module(**batch())["loss"], model)
    nn.parallel.DistributedDataParallel(module)(**batch())["loss"].backward()
    for tensor, exact in zip(trained(model), wanted, strict=True):
        torch.testing.assert_close(tensor.grad, exact, rtol=1e-12, atol=1e-14)


def test_the_trainer_counts_the_tokens_that_are_predicted(tmp_path: Path) -> None:
    module = LanguageModelLoss(adapted(dtype=torch.float32))
    trainer = Trainer(module, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert trainer.model_accepts_loss_kwargs
    assert trainer.label_names == ["labels"]
    assert trainer._get_num_items_in_batch([batch(), batch()], module.device) == 2 * (11 + 8 + 6)

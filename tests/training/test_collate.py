from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lors_cli.data.example import IGNORED, Example
from lors_cli.data.packing import pack
from lors_cli.training.collate import collate


def test_pads_on_the_right_without_learning_the_padding() -> None:
    batch = collate([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}], padding=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "position_ids" not in batch


def test_equal_lengths_need_no_mask() -> None:
    assert "attention_mask" not in collate([{"input_ids": [1, 2], "labels": [1, 2]}] * 2, padding=0)


def test_positions_restart_in_each_document_and_in_the_padding() -> None:
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "documents": [2, 3]}
    batch = collate([packed, {"input_ids": [6, 7, 8], "labels": [6, 7, 8]}], padding=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4, 5], [6, 7, 8, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]
    assert "attention_mask" not in batch


CLOSE = {"sdpa": 1e-12, "eager": 1e-6}  # eager has its softmax in float32, whatever the model is in


@pytest.fixture(scope="module", params=list(CLOSE))
def model(request: pytest.FixtureRequest, dense: Path) -> LlamaForCausalLM:
    loaded = LlamaForCausalLM.from_pretrained(dense, attn_implementation=request.param, dtype=torch.float64)
    loaded.config.use_cache = False  # as in training: with a cache, transformers does not look for documents
    return loaded.eval()


def logits(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        predicted: Tensor = model(**{key: tensor for key, tensor in batch.items() if key != "labels"}).logits
    return predicted


def loss(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> float:
    """Summed over the tokens that are learnt."""
    predicted = logits(model, batch)[:, :-1].flatten(0, 1)
    target = batch["labels"][:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(predicted, target, ignore_index=IGNORED, reduction="sum"))


def test_documents_of_a_window_do_not_see_each_other(model: LlamaForCausalLM) -> None:
    torch.manual_seed(0)
    documents = [torch.randint(1, 384, (size,)).tolist() for size in (7, 5, 9, 1, 6, 4)]
    given: list[Example] = [{"input_ids": ids, "labels": ids} for ids in documents]
    batch = collate(pack(given, 16), padding=0)  # 9 7 | 6 5 4 1
    assert batch["position_ids"][1].tolist() == [*range(6), *range(5), *range(4), 0]
    whole = logits(model, batch)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, :9] += 1
    torch.testing.assert_close(logits(model, changed)[0, 9:], whole[0, 9:], rtol=0, atol=1e-12)  # the same sums
    assert not torch.equal(logits(model, changed)[0, :9], whole[0, :9])
    start, close = 0, CLOSE[model.config._attn_implementation]
    for size in (6, 5, 4, 1):
        alone = logits(model, {"input_ids": batch["input_ids"][1:, start : start + size]})
        torch.testing.assert_close(whole[1:, start : start + size], alone, rtol=0, atol=close)
        start += size


def test_the_loss_of_a_packed_batch_is_that_of_its_documents(model: LlamaForCausalLM) -> None:
    torch.manual_seed(0)
    documents = [torch.randint(1, 384, (size,)).tolist() for size in (12, 5, 9, 6, 2)]
    # part of the labels are left out, as of a prompt; the first one of a document is never predicted anyway
    given: list[Example] = [{"input_ids": ids, "labels": [ids[0], IGNORED, *ids[2:]]} for ids in documents]
    windows = pack(given, 16)
    assert [sum(window["documents"]) for window in windows] == [14, 15, 5]  # padding in the batch as well
    alone = sum(loss(model, collate([example], padding=0)) for example in given)
    close = CLOSE[model.config._attn_implementation]
    assert loss(model, collate(windows, padding=0)) == pytest.approx(alone, abs=100 * close)

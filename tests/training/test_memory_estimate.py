import pytest
import torch
from accelerate import init_empty_weights
from transformers import LlamaConfig, LlamaForCausalLM

from lors_cli.config.methods import complete
from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.errors import RequestError
from lors_cli.models import linears
from lors_cli.models.codes import Coded
from lors_cli.quantization.grid import Grid
from lors_cli.training import activations
from lors_cli.training.memory_estimate import Needs


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    section = complete(Train)(method="lors", dataset=TrainingDataset(path="python-topics"))
    with pytest.raises(RequestError, match="bfloat16 on Tesla T4"):
        Needs(trained=0, weights=0, cache=0, loss=0).check(section, "bfloat16", torch.device("cuda"))


def llama_70b(vocabulary: int) -> LlamaForCausalLM:
    """The shapes of Llama-2-70B, or with more words of Llama-3.1-70B, without content."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with init_empty_weights(include_buffers=False):
        model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.eval()


@pytest.mark.parametrize("method", ["lors", "sqft"])
def test_70b_in_2_4_and_four_bits_trains_on_40_gb(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section = complete(Train)(
        method=method,
        base="int4",
        rank=16,
        dataset=TrainingDataset(path="python-topics"),
        sequence_length=2048,
        micro_batch_size=1,
        gradient_checkpointing=True,
    )
    for vocabulary in (128256, 32000):  # Llama-3.1, Llama-2
        model = llama_70b(vocabulary)
        names = list(linears.shapes(model))
        coded = Coded(Grid(4, 128, symmetric=False), names)
        needs = Needs.of(model, section, names, "bfloat16", torch.device("cuda"), coded=coded)
        # what each tensor takes, by its shape: codes of half of the weights, their places, scales and zero points
        weights = trained = 0
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight") not in names:
                weights += 2 * parameter.numel()
                continue
            rows, columns = parameter.shape
            weights += rows * columns // 4 + rows * columns // 8 + rows * (columns // 128) * (2 + 1)
            trained += 16 * (rows + columns)
        assert needs.weights == weights
        assert needs.trained == trained
        assert needs.one_weight == 2 * 8192 * 28672
        assert needs.activations is not None
        parts = weights + 16 * trained + needs.loss + needs.one_weight + needs.activations
        assert needs.total == parts <= 40e9
        line = needs.lines(section)[0]
        for part in (weights, 16 * trained, needs.loss, needs.one_weight, needs.activations):
            assert f" {part / 1e9:.2f}" in line
        counted = needs.activations
        monkeypatch.setattr(activations, "saved_bytes", lambda *_, kept=counted: kept)  # the blocks are the same

"""Perplexity, against its definition."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.data import builtin
from lors_cli.errors import UnmeasurableError
from lors_cli.evaluation.perplexity import of_losses
from tests.evaluation.tasks import results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@torch.no_grad()
def test_perplexity_equals_the_definition(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    lors("eval", write_config(eval__models=["dense"]))
    ids = AutoTokenizer.from_pretrained(dense)("\n\n".join(builtin.texts("train")), add_special_tokens=False)[
        "input_ids"
    ]
    windows = torch.tensor(ids[: 4 * 32]).view(4, 32)
    model = AutoModelForCausalLM.from_pretrained(dense)
    losses = [float(model(window[None], labels=window[None]).loss) for window in windows]
    perplexity = results(tmp_path)["models"]["dense"]["perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    assert perplexity["tokens"] == 4 * 31
    assert results(tmp_path)["settings"]["perplexity"]["bos"] is False


def test_a_model_of_nan_ends_with_a_message(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model(tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = lors("eval", write_config(model=str(model), eval__models=["dense"]), status=1)
    assert "NaN" in result.stderr
    assert not (tmp_path / "run/eval").exists()


def test_of_losses_by_hand() -> None:
    # 3 predicted tokens a window: mean losses 1 and 2
    assert of_losses([3.0, 6.0], 4) == {
        "value": pytest.approx(math.exp(1.5)),
        "tokens": 6,
        "stderr": pytest.approx(math.exp(1.5) * 0.5),  # (2 - 1) / sqrt(2) by sqrt(2) windows
    }
    assert of_losses([3.0], 4) == {"value": pytest.approx(math.e), "tokens": 3}  # one window has no error
    assert math.isfinite(of_losses([2125.0, 2126.0], 4)["value"])
    with pytest.raises(UnmeasurableError, match="3333 nats per token"):
        of_losses([1e4, 1e4], 4)

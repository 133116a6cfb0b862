"""Numbers in config.json that would make a model of no end, or none: refused before anything is made."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from lors_cli.errors import RequestError
from lors_cli.models import load

KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim")
WRONG: list[tuple[str, Any]] = [
    *((key, value) for key in KEYS for value in ("32", True, -4, 10**9, 10**30, 1.5, [4])),
    *(("num_key_value_heads", value) for value in (3, 0, -2, 10**9)),
    *(("max_position_embeddings", value) for value in (0, -1, 10**30, "x")),
    *(("rms_norm_eps", value) for value in (-1.0, float("nan"), 2, "x")),
    *(("attention_dropout", value) for value in (5.0, -1.0)),
    *(("num_labels", value) for value in (10**5, 10**9, 10**30)),
    *(("rope_theta", value) for value in (0, -5.0, float("inf"))),
    ("rope_scaling", {"type": "linear", "factor": 0.0}),
    ("num_attention_heads", 3),
    ("another", {"deep": [1, 10**30]}),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_number_that_no_model_has(make_model: Callable[..., Path], tmp_path: Path, key: str, value: Any) -> None:
    file = make_model(tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        load.skeleton(tmp_path)
    assert caught.value.problems[0].file == str(file)
    assert time.monotonic() - started < 5


def test_what_the_files_have_is_no_nonsense(make_model: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 4}
    load.skeleton(make_model(tmp_path, num_hidden_layers=300, **sizes))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="num_hidden_layers"):  # nothing vouches for so many
        load.skeleton(tmp_path)


def test_tables_of_positions_that_fill_the_memory(make_model: Callable[..., Path], tmp_path: Path) -> None:
    file = make_model(tmp_path / "llama", max_position_embeddings=10**7) / "config.json"
    load.skeleton(file.parent)  # which has no such tables
    config = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, vocab_size=384, attention_types=[[["global", "local"], 1]]
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "neo")
    file = tmp_path / "neo/config.json"
    load.skeleton(file.parent)
    for count in (131_072, 10**12):
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": count}))
        with pytest.raises(RequestError) as caught:
            load.skeleton(file.parent)
        assert caught.value.problems[0].file == str(file)

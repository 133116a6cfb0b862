"""A hub without a network for dry runs: config files of Llamas by their names, and rows of the data sets' formats."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lors_cli.data import hub
from lors_cli.models import memory, source
from lors_cli.stages import common, evaluate
from lors_cli.training import activations

ROOT = Path(__file__).parents[1]
# hidden, MLP, blocks, heads, heads of keys, vocabulary: of the config files on the hub
SHAPES = {
    "3.2-1b": (2048, 8192, 16, 32, 8, 128256),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "30b": (6656, 17920, 60, 52, 52, 32000),
    "65b": (8192, 22016, 80, 64, 64, 32000),
    "70b": (8192, 28672, 80, 64, 8, 32000),
    "3-8b": (4096, 14336, 32, 32, 8, 128256),
    "3.1-8b": (4096, 14336, 32, 32, 8, 128256),
    "3.1-70b": (8192, 28672, 80, 64, 8, 128256),
}
WORDS = " ".join(f"{number} and {number * number % 97}," for number in range(400))
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Add.", "input": WORDS[:90], "output": "3", "text": f"{WORDS[:90]}\nAdd.\n3"},
    "openhermes": {
        "conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "3"}],
        "source": "made",
        "system_prompt": None,
    },
    "orca": {"system_prompt": "Be brief.", "question": "Hi", "response": "Yes?"},
    "gsm8k": {"question": "1+1?", "answer": "2"},
    "": {"text": WORDS},
}
CALIBRATIONS: dict[str, Any] = {}  # the tokens that were read, by what was asked


def shape_of(model: str) -> tuple[int, ...]:
    """The shape of a model of the hub, by the end of its name."""
    name = model.rpartition("/")[2].lower().removesuffix("-hf")
    return SHAPES[max((key for key in SHAPES if name.endswith(key)), key=len)]


def save_config(model: str, directory: Path, tokenizer: PreTrainedTokenizerFast, blocks: int | None = None) -> Path:
    """The config file and a tokenizer, as a hub model has them; of fewer `blocks` if asked."""
    hidden, mlp, layers, heads, kv_heads, vocabulary = shape_of(model)
    LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=blocks or layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        torch_dtype="float16",
        eos_token_id=0,
        bos_token_id=None,
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def use(folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `folder`, where scripts, configs and some texts are, beside such a hub; benchmarks are not looked for."""

    def snapshot(model: str, *_: Any, **__: Any) -> Path:
        directory = folder / "hub" / model
        blocks = 8  # some prunings keep the first four and the last two
        return directory if directory.exists() else save_config(model, directory, tokenizer, blocks)

    def data_set(address: Any, *, streaming: bool) -> Any:
        row = next(row for name, row in ROWS.items() if name in address.path.lower())
        made = datasets.Dataset.from_list([row] * 40)
        return made.to_iterable_dataset() if streaming else made

    def calibration(config: Any, section: Any, *model: Any) -> Any:
        asked = section.model_dump_json()  # all models have one tokenizer here
        if asked not in CALIBRATIONS:
            CALIBRATIONS[asked] = calibration_tokens(config, section, *model)
        return CALIBRATIONS[asked]

    calibration_tokens = common.calibration_tokens
    monkeypatch.setattr(common, "calibration_tokens", calibration)
    monkeypatch.setattr(source, "_snapshot", snapshot)
    monkeypatch.setattr(hub, "load", data_set)
    monkeypatch.setattr(evaluate, "benchmarks", lambda section: None)
    monkeypatch.setattr(activations, "saved_bytes", lambda *_: 1 << 30)  # counting takes seconds, and has its own tests
    monkeypatch.setattr(
        memory, "free_host", lambda: 1 << 40
    )  # models of the papers' size are pruned on larger machines
    monkeypatch.chdir(folder)
    texts = ("c4.jsonl", "runs/loram_quality/train.jsonl", "runs/loram_quality/held_out.jsonl")  # of alpaca_text.sh
    files = {name: (json.dumps({"text": WORDS}) + "\n") * 40 for name in texts}
    files["runs/reproduce/loram_gsm8k/rows.jsonl"] = json.dumps({"prompt": "Q: 1+1?\nA:", "completion": " 2."}) + "\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_text(text)
    for name in ("configs", "scripts"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)

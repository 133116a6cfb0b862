"""Small tasks for lm-eval, and what an evaluation wrote."""

import json
from pathlib import Path
from typing import Any

MODEL_ANSWERS = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "items.jsonl"}},
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{question}}",
}
CHOICE = {
    **MODEL_ANSWERS,
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 3.0},
}
GENERATION = {
    **MODEL_ANSWERS,
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "strict-match", "filter": [{"function": "take_first"}]},
        {"name": "first-letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}]},
    ],
}
PRESET = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "rte", "winogrande"]


def write_tasks(directory: Path) -> Path:
    """Two tasks, and local stand-ins for those of the preset lors-paper."""
    directory.mkdir()
    for name, content in {"words": CHOICE, "letters": GENERATION, **{f"{n}_local": CHOICE for n in PRESET}}.items():
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name, **content}))
    rows = [{"question": f"{i} and {i * i % 7}:", "choices": [" red", " blue sky"], "answer": i % 2} for i in range(23)]
    for name, part in {"items": rows[:13], "train": rows[13:]}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return directory


def results(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "run/eval/results.json").read_text())
    return content

"""What is wrong with a task or with a model for it is said before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.evaluation.tasks import CHOICE, GENERATION, results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
NO_TRAINING = {key: value for key, value in CHOICE.items() if key != "training_split"}


def rows(directory: Path, name: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Write items to a file of their own; what a task file says of it."""
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return {"dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": f"{name}.jsonl"}}}


def choices(*answers: Any, choices: list[str] = [" red", " blue"]) -> list[dict[str, Any]]:  # noqa: B006
    return [{"question": f"{number}:", "choices": choices, "answer": answer} for number, answer in enumerate(answers)]


PICTURES = {"doc_to_image": "picture"}
OWN_ANSWER = {**NO_TRAINING, "test_split": "validation", "validation_split": None}
MEASURED_TWICE = {**CHOICE, "fewshot_split": "validation"}


@pytest.mark.parametrize(
    ("task", "items", "settings", "expected"),
    [
        # ten rows to draw from, of which the item itself may be one
        (CHOICE, None, {"shots": 10}, "at most 9 examples for own"),
        ({**CHOICE, "test_split": "validation", "fewshot_split": "train"}, None, {"shots": 11}, "at most 10 examples"),
        (NO_TRAINING, None, {"shots": 13}, "at most 12 examples for own"),
        (OWN_ANSWER, None, {"shots": 14}, "at most 13 examples for own"),
        ({**CHOICE, "doc_to_text": "{{question.nothing.here}}"}, None, {}, "a correct task 'own'"),
        (
            {**GENERATION, "metric_list": [{"metric": "exact_mtch"}]},
            None,
            {},
            "exact_mtch is none of the metrics of lm-eval",
        ),
        ({**CHOICE, "fewshot_split": "absent"}, None, {}, "a correct task 'own'"),
        (CHOICE, choices(0, -1), {}, "-1 for item 1"),
        (CHOICE, choices(0, 2), {}, "2 for item 1"),
        ({**CHOICE, "doc_to_target": "{{['red', 'green'][answer]}}"}, choices(0, 1), {}, "'red' for item 0"),
        (CHOICE, choices(0, 0, choices=[" red"]), {}, "a single choice for all 2 items"),
        (CHOICE, [*choices(0), *choices(0, choices=["red", ""])], {}, "an empty one for item 1"),
        ({**GENERATION, "metric_list": [{"metric": "bypass"}]}, None, {}, "a metric of own"),
        ({**CHOICE, **PICTURES}, None, {}, "which has images or sound"),
        (
            {**GENERATION, "generation_kwargs": {"until": [], "max_gen_toks": 256}},
            None,
            {},
            "answers of up to 256 tokens",
        ),
    ],
)
def test_tasks_that_measure_nothing_are_refused(
    lors: Lors,
    write_config: WriteConfig,
    task_dir: Path,
    tmp_path: Path,
    task: dict[str, Any],
    items: list[dict[str, Any]] | None,
    settings: dict[str, Any],
    expected: str,
) -> None:
    files = rows(task_dir, "own_items", items) if items else {}
    (task_dir / "own.yaml").write_text(json.dumps({"task": "own", **task, **files}))
    options = {"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"], **settings}
    assert expected in lors("eval", write_config(eval=options), status=2).stderr
    assert not (tmp_path / "run").exists()


def test_the_remedies_for_shots_work(lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path) -> None:
    (task_dir / "own.yaml").write_text(json.dumps({"task": "own", **NO_TRAINING}))
    options = {"tasks": ["own", "words"], "task_dir": str(task_dir), "models": ["dense"], "limit": 2}
    lors("eval", write_config(eval={**options, "shots": 9}))
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    assert [entries[name]["shots"] for name in ("own", "words")] == [9, 9]


@pytest.mark.parametrize("task", [OWN_ANSWER, MEASURED_TWICE], ids=["only a test split", "examples are measured"])
def test_items_that_are_their_own_examples_are_counted(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, task: dict[str, Any]
) -> None:
    (task_dir / "own.yaml").write_text(json.dumps({"task": "own", **task}))
    options = {"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"]}
    every = lors("eval", write_config(eval={**options, "shots": 13}))  # all of them, so itself too
    assert "own draws its examples from 'validation', the split that is measured" in every.stderr
    assert "own 13 of 13 prompts had their own item with its answer among the examples" in every.stdout
    lors("eval", write_config(eval={**options, "shots": 3}), "--force")
    assert 0 < results(tmp_path)["models"]["dense"]["tasks"]["own"]["own_examples"] < 13
    none = lors("eval", write_config(eval={**options, "shots": 0}), "--force")
    assert "own_examples" not in results(tmp_path)["models"]["dense"]["tasks"]["own"]
    assert "measured: items" not in none.stderr


def test_a_limit_leaves_wrong_items_out(lors: Lors, write_config: WriteConfig, task_dir: Path) -> None:
    files = rows(task_dir, "own_items", choices(0, 1, -1))
    (task_dir / "own.yaml").write_text(json.dumps({"task": "own", **CHOICE, **files}))
    options = {"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"], "limit": 2}
    assert "2 of 3 items" in lors("eval", write_config(eval=options)).stdout


def test_a_tokenizer_without_an_end_is_refused_where_it_is_needed(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], task_dir: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    path = model / "tokenizer_config.json"
    whole = json.loads(path.read_text())
    bare = {key: value for key, value in whole.items() if key not in ("eos_token", "pad_token")}
    path.write_text(json.dumps(bare))
    options = {"tasks": ["words", "letters"], "task_dir": str(task_dir), "models": ["dense"], "limit": 2}
    config = write_config(model=str(model), eval=options)
    said = lors("eval", config, status=2).stderr
    assert "dense without one, for words" in said
    assert "dense without one, for letters" in said
    path.write_text(json.dumps({**bare, "eos_token": "<|end|>"}))  # what the message says
    lors("eval", config)
    path.write_text(json.dumps({**bare, "bos_token": "<|user|>"}))
    said = lors("eval", config, "--force", status=2).stderr
    assert "for words" not in said
    assert "dense without one, for letters" in said


def test_a_task_is_asked_once(lors: Lors, write_config: WriteConfig, task_dir: Path) -> None:
    (task_dir / "group.yaml").write_text(json.dumps({"group": "both", "task": ["words", "letters"]}))
    options = {"tasks": ["words", "both"], "task_dir": str(task_dir), "models": ["dense"]}
    assert "words in both and in words" in lors("eval", write_config(eval=options), status=2).stderr
    preset = {
        "preset": "lors-paper",
        "tasks": ["rte_local"],
        "shots": 5,
        "task_dir": str(task_dir),
        "models": ["dense"],
    }
    assert "leave rte_local out" in lors("eval", write_config(eval=preset), status=2).stderr


def test_a_preset_needs_its_metric(lors: Lors, write_config: WriteConfig, task_dir: Path) -> None:
    other = {"task": "rte_local", **CHOICE, "metric_list": [{"metric": "acc_norm"}]}
    (task_dir / "rte_local.yaml").write_text(json.dumps(other))
    options = {"preset": "lors-paper", "task_dir": str(task_dir), "models": ["dense"]}
    assert "acc among the metrics and filters of rte_local" in lors("eval", write_config(eval=options), status=2).stderr


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["words", "wrods"], "'wrods'"),
        ([], "at least one task in the group own"),
        (["words", "letters"], "letters without it"),
    ],
)
def test_groups_are_whole(
    lors: Lors, write_config: WriteConfig, task_dir: Path, members: list[str], expected: str
) -> None:
    group = {"group": "own", "task": members, "aggregate_metric_list": [{"metric": "acc"}]}
    (task_dir / "own.yaml").write_text(json.dumps(group))
    options = {"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"]}
    assert expected in lors("eval", write_config(eval=options), status=2).stderr


def test_a_tag_finds_the_data_of_its_tasks(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    (task_dir / "tagged.yaml").write_text(json.dumps({"task": "tagged", "tag": ["own"], **CHOICE}))
    lors("eval", write_config(eval={"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"], "limit": 1}))
    assert set(results(tmp_path)["models"]["dense"]["tasks"]) == {"tagged"}

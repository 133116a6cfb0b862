"""The table that `lors eval` prints."""

from typing import Any

from lors_cli.evaluation import table

TASKS: dict[str, Any] = {
    "arc_easy": {"acc": 0.5, "acc_stderr": 0.0123, "n": 40, "shots": 0, "metric": "acc", "benchmark": "arc_easy"},
    "boolq_local": {"acc": 0.75, "acc_stderr": float("nan"), "n": 8, "shots": None, "metric": "acc"},
    "exams_a": {"acc": 0.1, "metric": "acc", "n": 2, "shots": 5, "group": "exams"},
}
SETTINGS = {
    "dtype": "float32",
    "backend": "transformers",
    "perplexity": {"dataset": {"path": "c4.jsonl"}, "sequence_length": 64},
}


def model(sparsity: float, value: float, **more: float) -> dict[str, Any]:
    return {"sparsity": sparsity, "perplexity": {"value": value, "tokens": 126}, "tasks": TASKS, **more}


def test_a_row_for_each_model_and_what_the_numbers_depend_on() -> None:
    models = {"dense": model(0.0, 12.345), "merged": model(0.5, 20.0)}
    shown = table.render({"models": models, "settings": SETTINGS, "versions": {"lm_eval": "0.4.11"}})
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[:4:2]] == [
        ["model", "sparsity", "perplexity", "arc_easy", "boolq_local"],
        ["dense", "0.0000", "12.35", "acc 0.5000 ± 0.0123", "acc 0.7500 ± —"],
    ]
    assert "merged" in shown.splitlines()[3]
    assert "Perplexity: c4.jsonl, windows of 64 tokens, 126 predicted, no BOS. dtype: float32.\n" in shown
    assert shown.endswith(
        "Tasks: lm-eval 0.4.11, transformers; arc_easy 40 items, 0 shots, boolq_local 8 items, 0 shots.\n"
    )


def test_the_average_is_that_of_a_presets_benchmarks() -> None:
    assert table.average(TASKS) is None  # only one of them is a preset's
    more = {**TASKS, "rte": {"acc": 0.9, "acc_norm": 0.1, "metric": "acc", "benchmark": "rte"}}
    average = table.average(more)
    assert average == (0.5 + 0.9) / 2
    models = {"dense": model(0.0, 12.345, average=average)}
    assert "0.7000" in table.render({"models": models, "settings": SETTINGS, "versions": {}}).splitlines()[2]


def test_what_was_cut_and_what_was_left_out_stand_beside_the_numbers() -> None:
    cut = {"arc_easy": {**TASKS["arc_easy"], "total": 90, "truncated": 3, "unfinished": 0}}
    models = {"dense": {**model(0.0, 12.345), "tasks": cut}, "merged": model(0.5, 20.0)}
    models["merged"]["perplexity"]["positions"] = 32
    shown = table.render({"models": models, "settings": SETTINGS, "versions": {}})
    assert "acc 0.5000 ± 0.0123 †" in shown.splitlines()[2]
    assert "†" not in shown.splitlines()[3]
    assert "arc_easy 40 of 90 items, 0 shots" in shown
    assert "† dense: arc_easy 3 of 40 prompts were longer than the model's positions and lost their beginning." in shown
    assert "merged: perplexity on windows that are longer than the model's 32 positions." in shown

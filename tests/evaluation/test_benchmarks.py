"""Presets and tasks, of lm-eval or of a directory, through `lors eval`."""

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from torch import Tensor
from torch.utils import collect_env
from transformers import LlamaForCausalLM
from typer.testing import Result

from lors_cli.evaluation.benchmarks import BUILT_IN_TASKS
from lors_cli.evaluation.code_execution import sandbox
from lors_cli.evaluation.presets import PRESETS
from tests.conftest import SHARED_DATA, needs_shared_data
from tests.evaluation.tasks import CHOICE, GENERATION, PRESET, results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def test_local_tasks_without_a_network(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveys: list[str] = []
    monkeypatch.setattr(collect_env, "get_pretty_env_info", lambda: surveys.append("of the machine"))
    (task_dir / "data").mkdir()
    for file in task_dir.glob("*.jsonl"):
        file.rename(task_dir / "data" / file.name)
    tasks = {"eval__tasks": ["words", "lors_quiz"], "eval__task_dir": str(task_dir)}
    tasks["eval__data_dir"] = f"{task_dir}/data"
    shown = lors("eval", write_config(eval__models=["dense"], eval__limit=6, **tasks)).stdout
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    assert set(entries) == {"words", "lors_quiz"}
    assert entries["words"]["n"] == 6
    assert 0 <= entries["words"]["acc"] <= 1
    assert entries["words"]["acc_stderr"] > 0
    assert "words" in shown
    assert "6 of 13 items" in shown
    assert not surveys  # of pip's packages, compilers and drivers, which takes seconds a task


def test_a_preset_takes_local_copies_and_averages_the_papers_metric(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    options = {
        "preset": "lors-paper",
        "tasks": ["words"],
        "task_dir": str(task_dir),
        "models": ["dense"],
        "offline": True,
    }
    shown = lors("eval", write_config(eval=options)).stdout
    model = results(tmp_path)["models"]["dense"]
    assert [entry.get("benchmark") for entry in model["tasks"].values()] == [*PRESET, None]
    assert list(model["tasks"]) == [*(f"{name}_local" for name in PRESET), "words"]
    accuracies = [model["tasks"][f"{name}_local"]["acc"] for name in PRESET]
    assert model["average"] == pytest.approx(sum(accuracies) / 7)
    assert f"{model['average']:.4f}" in shown
    assert results(tmp_path)["settings"]["preset"] == "lors-paper"


@pytest.mark.parametrize(
    ("preset", "shots", "names"),
    [("loram-csr", {1}, ["arc_easy", "piqa", "winogrande"]), ("loram-math", {1, 8}, ["gsm8k_cot", "mathqa"])],
)
def test_presets_have_the_papers_shots(
    lors: Lors,
    write_config: WriteConfig,
    task_dir: Path,
    tmp_path: Path,
    preset: str,
    shots: set[int],
    names: list[str],
) -> None:
    for name in ("piqa", "mathqa"):
        (task_dir / f"{name}.yaml").write_text(json.dumps({"task": name, **CHOICE}))
    chains = {"task": "gsm8k_cot_local", **GENERATION, "num_fewshot": 5}
    (task_dir / "gsm8k_cot_local.yaml").write_text(json.dumps(chains))
    lors("eval", write_config(eval={"preset": preset, "task_dir": str(task_dir), "limit": 3, "models": ["dense"]}))
    entries = {entry["benchmark"]: entry for entry in results(tmp_path)["models"]["dense"]["tasks"].values()}
    assert set(names) <= set(entries)
    assert {entry["shots"] for entry in entries.values()} == shots
    assert all(entry["metric"] in entry for entry in entries.values())


def test_humaneval_in_a_local_group(
    lors: Lors,
    write_config: WriteConfig,
    make_model: Callable[..., Path],
    task_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate, asked = LlamaForCausalLM.generate, []

    def briefly(model: Any, *, input_ids: Tensor, max_length: int, **options: Any) -> Any:
        asked.append(max_length - input_ids.shape[1])
        return generate(model, input_ids=input_ids, max_length=input_ids.shape[1] + 8, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", briefly)  # 41 answers of 1,024 tokens would take minutes
    names = [f"humaneval_{kind}" for kind in ("greedy", "t02", "t04", "t06", "t08")]
    files = {"data_files": {"test": "problems.jsonl"}}
    group = {"group": "humaneval_local", "dataset_path": "json", "dataset_kwargs": files, "task": names}
    (task_dir / "humaneval_local.yaml").write_text(json.dumps(group))
    problem = {"task_id": "a/0", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "entry_point": "one"}
    (task_dir / "problems.jsonl").write_text(json.dumps({**problem, "test": "def check(f):\n    assert f() == 1\n"}))
    model = make_model(tmp_path / "model", max_position_embeddings=1200)
    config = write_config(
        model=str(model), eval={"preset": "humaneval", "task_dir": str(task_dir), "models": ["dense"]}
    )
    assert "eval.allow_code_execution" in lors("eval", config, status=2).stderr
    lors("eval", config, "eval.allow_code_execution=true")
    assert set(asked) == {1024}
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    assert {name: entry["metric"] for name, entry in entries.items()} == dict(
        zip(names, ["pass@1", *["pass@10"] * 4], strict=True)
    )
    assert all(entry["benchmark"] == name for name, entry in entries.items())
    assert results(tmp_path)["settings"]["sandbox"] == dict.fromkeys(names, sandbox().kind)


@needs_shared_data
def test_the_shipped_data_sets(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    tasks = ["arc_easy_local", "boolq_local", "winogrande_local", "hellaswag_local", "rte_local", "openbookqa_local"]
    config = write_config(
        eval={
            "models": ["dense"],
            "tasks": tasks,
            "task_dir": str(SHARED_DATA / "lm_eval_tasks"),
            "data_dir": str(SHARED_DATA),
            "limit": 5,
            "perplexity": {"dataset": str(SHARED_DATA / "c4_300.jsonl.gz"), "sequence_length": 64, "samples": 3},
        }
    )
    lors("eval", config)
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    assert set(entries) == set(tasks)
    assert all(metrics["n"] == 5 for metrics in entries.values())


@needs_shared_data
def test_the_papers_benchmarks_on_the_shipped_data(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", max_position_embeddings=2048)
    data = {"task_dir": str(SHARED_DATA / "lm_eval_tasks"), "data_dir": str(SHARED_DATA), "limit": 2}
    options = {"models": ["dense"], "offline": True, **data}
    lors("eval", write_config(model=str(model), eval={"preset": "lors-paper", **options}))
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    assert [entry["benchmark"] for entry in entries.values()] == PRESET
    # the shipped task is gsm8k; that of LoRAM differs in its prompts alone
    tasks = shutil.copytree(SHARED_DATA / "lm_eval_tasks", tmp_path / "own_tasks")
    chains = Path(str(files("lm_eval"))) / "tasks/gsm8k/gsm8k-cot.yaml"
    text = (
        chains.read_text().replace("task: gsm8k_cot\n", "task: gsm8k_cot_local\n").replace("dataset_name: main\n", "")
    )
    local = "dataset_path: json\ndataset_kwargs: {data_files: {test: gsm8k_test.jsonl}}\n"
    (tasks / "gsm8k_cot_local.yaml").write_text(text.replace("dataset_path: openai/gsm8k\n", local))
    options |= {"task_dir": str(tasks), "limit": 1}
    config = write_config(model=str(model), eval={"preset": "loram-math", **options})
    lors("eval", config, f"output_dir={tmp_path / 'math'}")


def test_presets_name_tasks_that_lm_eval_or_lors_has() -> None:
    known = set(TaskManager(include_path=[str(BUILT_IN_TASKS)]).all_tasks)
    assert {one.task for benchmarks in PRESETS.values() for one in benchmarks} <= known

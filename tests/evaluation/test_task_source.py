"""Directories of tasks that were written to do harm: nothing of them runs, and each is refused by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.errors import RequestError
from lors_cli.evaluation import benchmarks, task_source
from tests.evaluation.tasks import CHOICE, GENERATION, results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
OWN = "".join(f"{key}: {json.dumps(value)}\n" for key, value in {"task": "own", **CHOICE}.items())
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text('')\ndef run(*_):\n    pass\n"
TRUSTED = "lm_eval.tasks.hellaswag.utils"


def load(task_dir: Path, *names: str, **options: Any) -> benchmarks.Benchmarks:
    settings = {"preset": None, "shots": None, "limit": None, "allow_code_execution": False, "trust_task_code": False}
    return benchmarks.load(list(names or ["own"]), str(task_dir), None, **{**settings, **options})


def refused(task_dir: Path, *names: str, **options: Any) -> str:
    with pytest.raises(RequestError) as error:
        load(task_dir, *names, **options)
    assert not [*task_dir.rglob("ran")]
    return str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        {"own.yaml": f"{OWN}process_docs: !function code.run\n"},
        {"own.yaml": f"{OWN}metadata: {{a: [{{b: !function code.run }}]}}\n"},
        {"own.yaml": f"{OWN}process_docs: !<!function> code.run\n"},
        {"own.yaml": f"%TAG !e! !func\n---\n{OWN}process_docs: !e!tion code.run\n"},
        {"own.yaml": f"<<: {{process_docs: !function code.run }}\n{OWN}"},
        {"own.yaml": f"class: !function code.run\n{OWN}"},
        {"own.yaml": f"{OWN}process_docs: !function os.system\n"},
        {"own.yaml": f"{OWN}include: other\n", "other": "process_docs: !function code.run\n"},
        {"own.yaml": "group: own\ntask: [words]\nprocess_docs: !function code.run\n"},
        {"own.yaml": "group: own\ntask: [{task: words, process_docs: !function code.run }]\n"},
        {"own.yaml": "group: own\ntask: [in]\n", "in.yaml": "group: in\ntask: [{task: x, class: !function code.run }]"},
        {"t.yaml": f"{OWN}process_docs: !function code.run\n".replace('"own"', "tagged\ntag: own")},
        {"own.yaml": f"{OWN}process_docs: !function {TRUSTED}.run\n", f"{TRUSTED.replace('.', '/')}.py": CODE},
        {"own.yaml": f"{OWN}process_docs: !function {TRUSTED}.datasets\n"},
        {"own.yaml": f"{OWN}process_results: !function lm_eval.tasks.cruxeval.utils.process_results_output\n"},
    ],
)
def test_functions_are_refused_with_their_line(task_dir: Path, files: dict[str, str]) -> None:
    for name, content in {"code.py": CODE, **files}.items():
        (task_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (task_dir / name).write_text(content)
    lines = {path: text.split("\n") for path, text in files.items()}
    message = refused(task_dir)
    assert "eval.trust_task_code: true" in message
    path, line = next((p, n) for p, text in lines.items() for n, part in enumerate(text, 1) if ": !" in part)
    assert f"{(task_dir / path).resolve()}:{line}: eval.trust_task_code" in message


def test_a_function_that_nobody_asks_for_does_not_matter(task_dir: Path) -> None:
    (task_dir / "code.py").write_text(CODE)
    (task_dir / "own.yaml").write_text(f"{OWN}process_docs: !function code.run\n")
    assert load(task_dir, "words").asked[0].tasks()
    assert not (task_dir / "ran").exists()


def test_functions_of_lm_eval_that_evaluate_nothing_may_be_called(task_dir: Path) -> None:
    rows = [{"ctx_a": "He", "ctx_b": "runs", "activity_label": "x", "endings": [" on.", " off."], "label": 1}]
    (task_dir / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    files = {"dataset_kwargs": {"data_files": {"validation": "h.jsonl"}}, "doc_to_text": "{{query}}"}
    task = {**CHOICE, **files, "doc_to_target": "{{gold}}", "training_split": None}
    content = "".join(f"{key}: {json.dumps(value)}\n" for key, value in {"task": "own", **task}.items())
    included = f"include: {task_source.OF_LM_EVAL / 'hellaswag/hellaswag.yaml'}\n"
    for text in (f"{content}process_docs: !function {TRUSTED}.process_docs\n", f"{included}{content}"):
        (task_dir / "own.yaml").write_text(text)
        (found,) = load(task_dir).asked[0].tasks()
        assert found.eval_docs[0]["query"] == "x: He Runs"


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("class", {"class": "os.system"}),
        ("custom_dataset", {"custom_dataset": "os.system"}),
        ("nonsense", {"nonsense": 1}),
        ("dataset_path", {"dataset_path": "pandas"}),
        ("dataset_path", {"dataset_path": "sql"}),
        ("dataset_path", {"dataset_path": "/etc"}),
        ("dataset_path", {"dataset_path": "code.py"}),
        ("dataset_path", {"dataset_path": "folder"}),
        ("dataset_kwargs.token", {"dataset_kwargs": {"token": True}}),
        ("dataset_kwargs.trust_remote_code", {"dataset_kwargs": {"trust_remote_code": True}}),
        ("dataset_kwargs.cache_dir", {"dataset_kwargs": {"cache_dir": "x"}}),
        *(
            ("dataset_kwargs.data_files.test", {"dataset_kwargs": {"data_files": {"test": file}}})
            for file in ("/etc/hosts", "../x", "a/../../x", "~/x", "https://host/x", "file:///etc/hosts", "zip://a::b")
        ),
        ("eval.data_dir", {"dataset_kwargs": {"data_files": {"test": "link.jsonl"}}}),
        ("eval.data_dir", {"dataset_kwargs": {"data_files": {"test": "li*.jsonl"}}}),
        ("metric_list", {"metric_list": [{"metric": "code_eval"}]}),
        ("metric_list.0.hf_evaluate", {"metric_list": [{"metric": "bleu", "hf_evaluate": True}]}),
        ("use_prompt", {"use_prompt": "promptsource:x"}),
        ("use_prompt", {"use_prompt": "prompts.yaml:x"}),
        ("generation_kwargs.custom_generate", {**GENERATION, "generation_kwargs": {"custom_generate": "owner/name"}}),
        ("filter_list.0.filter.0.function", {"filter_list": [{"name": "x", "filter": [{"function": "custom"}]}]}),
        ("fewshot_config.sampler", {"fewshot_config": {"sampler": "x"}}),
        ("num_fewshot", {"num_fewshot": "many"}),
        *(
            ("task", {"task": name})
            for name in ("../../x", "/x", "a/b", "a\0b", "a" * 300, "-x", ".x", "a\nb", "a\x1b[1m", "perplexity", "")
        ),
    ],
)
def test_what_is_more_than_data_is_refused_by_its_key(task_dir: Path, key: str, changed: dict[str, Any]) -> None:
    (task_dir / "folder").mkdir()
    (task_dir / "link.jsonl").symlink_to(Path(__file__))
    (task_dir / "own.yaml").write_text(json.dumps({"task": "own", **CHOICE, **changed}))
    message = refused(task_dir, changed.get("task", "own"))
    assert f"{(task_dir / 'own.yaml').resolve()}: " in message
    assert f"{key}\n" in message
    assert task_source.TRUST in message


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("unsafe_code", {"task": ["humaneval_greedy"], "unsafe_code": False}),
        ("process_results", {"task": ["words"], "process_results": None}),
        ("task.0.task", {"task": [{"task": "../x", **CHOICE}]}),
        ("task.0.nonsense", {"task": [{"task": "words", "nonsense": 1}]}),
    ],
)
def test_what_groups_may_not_change(task_dir: Path, key: str, group: dict[str, Any]) -> None:
    (task_dir / "own.yaml").write_text(json.dumps({"group": "own", **group}))
    assert f"{key}\n" in refused(task_dir)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("python/object", f"{OWN}x: !!python/object/apply:os.system [ls]\n"),
        ("python/name", f"{OWN}process_docs: !!python/name:os.system\n"),
        ("more than 20,000 values", f"a: &a [{'1,' * 200}]\nb: [{'*a,' * 200}]\n"),
        ("nested", f"{OWN}x: {'[' * 5000}"),
        ("characters", f"{OWN}x: {'a' * 2_000_000}"),
        ("contains itself", f"{OWN}x: &x [*x]\n"),
        ("includes itself", f"{OWN}include: own.yaml\n"),
        ("not iterable", f"{OWN}include: 3\n"),
        ("task files in", f"{OWN}include: /etc/hosts\n"),
        ("task files in", f"{OWN}include: ../config.yaml\n"),
        ("task files that are files", f"{OWN}include: absent.yaml\n"),
    ],
)
def test_files_that_cannot_be_read_are_named(task_dir: Path, expected: str, text: str) -> None:
    (task_dir / "own.yaml").write_text(text)
    message = refused(task_dir, "words")
    assert expected in message
    assert str(task_dir.resolve()) in message


def test_links_and_pipes(task_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text(OWN)
    (task_dir / "own.yaml").symlink_to(tmp_path / "outside.yaml")
    assert f"which is {(tmp_path / 'outside.yaml').resolve()}" in refused(task_dir)
    assert load(task_dir, trust_task_code=True).asked[0].tasks()  # the remedy
    (task_dir / "own.yaml").unlink()
    os.mkfifo(task_dir / "own.yaml")  # reading it would wait for ever
    assert "task files that are files" in refused(task_dir)


def test_names_that_are_one_file_for_some_systems(task_dir: Path) -> None:
    for number, name in enumerate(("abc", "ABC")):
        (task_dir / f"{number}.yaml").write_text(json.dumps({"task": name, **CHOICE}))
    (task_dir / "own.yaml").write_text(json.dumps({"group": "own", "task": ["abc", "ABC"]}))
    assert "names that differ in more than upper case" in refused(task_dir)
    assert "each task once" in refused(task_dir, "abc", "ABC")


def test_names_are_checked_for_trusted_tasks_too(task_dir: Path) -> None:
    (task_dir / "own.yaml").write_text(json.dumps({"task": "../x", **CHOICE}))
    assert "rename it in the task's file" in refused(task_dir, "../x", trust_task_code=True)


def test_code_runs_where_it_is_trusted_and_counts(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    (task_dir / "code.py").write_text(CODE.replace("pass", "return _[0].select(range(5))"))
    (task_dir / "helper.py").write_text("")
    (task_dir / "own.yaml").write_text(f"{OWN}process_docs: !function code.run\n")
    config = write_config(eval={"tasks": ["own"], "task_dir": str(task_dir), "models": ["dense"]})
    for options in ([], ["--dry-run"]):
        assert "eval.trust_task_code" in lors("eval", config, *options, status=2).stderr
    assert not (task_dir / "ran").exists()
    lors("eval", config, "eval.trust_task_code=true")
    assert results(tmp_path)["models"]["dense"]["tasks"]["own"]["n"] == 5
    manifest = json.loads((tmp_path / "run/eval/lors.json").read_text())
    assert manifest["config"]["eval"]["trust_task_code"] is True
    assert {"own: own.yaml", "own: code.py", "own: helper.py", "own: items.jsonl", "own: train.jsonl"} == set(
        manifest["request"]["settings"]["task_files"]
    )
    (task_dir / "helper.py").write_text("changed = True\n")
    assert "task_files" in lors("eval", config, "eval.trust_task_code=true", status=2).stderr


def test_a_run_is_the_same_with_and_without_trust(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    config = write_config(eval={"tasks": ["words", "letters"], "task_dir": str(task_dir), "models": ["dense"]})
    lors("eval", config)
    assert "up to date" in lors("eval", config, "eval.trust_task_code=true").stderr
    lors("eval", config, "eval.trust_task_code=true", f"output_dir={tmp_path / 'other'}")
    one, other = (tmp_path / name / "eval/items/dense" for name in ("run", "other"))
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}

"""Programs that models write: what passes, what is stopped, and HumanEval through lm-eval."""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lors_cli.errors import LorsError, RequestError
from lors_cli.evaluation import code_execution, humaneval
from lors_cli.evaluation.benchmarks import BUILT_IN_TASKS
from lors_cli.evaluation.code_execution import Verdict
from tests.conftest import SHARED_DATA

DATA = SHARED_DATA / "humaneval_test.jsonl"
needs_humaneval = pytest.mark.skipif(not DATA.is_file(), reason=f"needs {DATA}")
ROOT = Path(__file__).parents[2]

PROBLEMS = [
    {
        "task_id": f"test/{name}",
        "prompt": f'def {name}(x):\n    """{name}"""\n',
        "canonical_solution": f"    return {value}\n",
        "test": f"def check(candidate):\n    assert candidate(3) == {result}\n",
        "entry_point": name,
    }
    for name, value, result in (("double", "2 * x", 6), ("square", "x * x", 9), ("negate", "-x", -3))
]


@pytest.fixture
def permitted() -> Iterator[None]:
    with code_execution.permitted():
        yield


def shipped(count: int) -> list[dict[str, Any]]:
    with DATA.open() as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


@needs_humaneval
@pytest.mark.usefixtures("permitted")
def test_canonical_solutions_pass_and_others_do_not() -> None:
    docs = shipped(5)
    answers = [[doc["canonical_solution"], "    return None\n", "    retrun 1\n"] for doc in docs]
    assert humaneval.run_tests(answers, docs) == [["passed", "failed", "failed"]] * 5


STOPPED = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "memory at once": "x = bytearray(1 << 40)",
    "memory bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 22))",
    "recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "program": "import subprocess; subprocess.run(['true'])",
    "process": "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
    "thread": "import threading; threading.Thread(target=print).start()",
    "kill": "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
    "socket": "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
    "large file": "open('x', 'wb').write(bytes(1 << 25))",
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "input": "input()",
    "descriptors": "import os\nfor i in range(3, 60):\n    try: os.write(i, b'+')\n    except OSError: pass",
    "closed descriptors": "import os; os.closerange(0, 60)",
    "third party": "import numpy",
}

LATE = {STOPPED[name] for name in ("loop", "sleep", "fork bomb")}
SLOW = {STOPPED[name] for name in ("recursion", "memory bit by bit")}  # fill the memory, or take too long for that


@pytest.mark.usefixtures("permitted")
def test_answers_are_not_tested_where_not_even_the_own_solution_passes() -> None:
    broken = [{**PROBLEMS[0], "canonical_solution": "    return None\n"}]
    with pytest.raises(LorsError, match="test/double: the problem's own solution fails here"):
        humaneval.run_tests([["    return 2 * x\n"]], broken)
    unknown = [{key: value for key, value in broken[0].items() if key != "canonical_solution"}]
    assert humaneval.run_tests([["    return 2 * x\n"]], unknown) == [["passed"]]


def test_programs_that_ran_out_of_time_are_counted() -> None:
    assert humaneval.results({}, [["passed", "late", "failed", "late"]]) == {"pass@1": 0.25, "out_of_time": 0.5}


@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("program", list(STOPPED.values()), ids=list(STOPPED))
def test_what_is_stopped_has_not_passed(program: str) -> None:
    started = time.monotonic()
    verdict = code_execution.check(program, timeout=1)
    if program not in SLOW:
        assert verdict == (Verdict.LATE if program in LATE else Verdict.FAILED)
    assert verdict != Verdict.PASSED
    assert time.monotonic() - started < 30


@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize(
    "change",
    ["open({0!r}, 'w')", "os.remove({0!r})", "os.rename({0!r}, 'x')", "os.chmod({0!r}, 0)", "shutil.rmtree({1!r})"],
)
def test_nothing_outside_is_changed(tmp_path: Path, change: str) -> None:
    file = tmp_path / "folder/kept"
    file.parent.mkdir()
    file.write_text("as it was")
    file.parent.chmod(0o777)
    mode = file.stat().st_mode
    assert code_execution.check(f"import os, shutil\n{change.format(str(file), str(file.parent))}") == Verdict.FAILED
    assert (file.read_text(), file.stat().st_mode) == ("as it was", mode)


@pytest.mark.usefixtures("permitted")
def test_what_an_honest_program_needs_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
from __future__ import annotations
import asyncio, collections, dataclasses, hashlib, math, os, random, re, tempfile, typing, unittest
@dataclasses.dataclass
class Point:
    x: int
assert Point(1).x == 1 and os.listdir() == []
with tempfile.TemporaryDirectory() as folder, open(folder + "/file", "w") as file:
    file.write("text")
print("x" * 10**7)
"""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert code_execution.check(program) == Verdict.PASSED
    assert list(tmp_path.iterdir()) == []
    order = "assert str({'one', 'two', 'three'}) == %r"
    seen = list(itertools.permutations(["'one'", "'two'", "'three'"]))
    outcomes = [[code_execution.check(order % f"{{{', '.join(s)}}}") for s in seen] for _ in range(2)]
    assert outcomes[0] == outcomes[1]  # the order of a set is the same in every run


def test_nothing_runs_without_permission() -> None:
    assert not code_execution.allowed()
    with pytest.raises(RequestError, match="allow_code_execution"):
        code_execution.check("pass")
    with pytest.raises(RequestError), code_execution.permitted(), pytest.raises(ZeroDivisionError):
        raise RequestError
    assert not code_execution.allowed()


@pytest.mark.usefixtures("permitted")
def test_a_python_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_execution, "RUNNER", Path(os.devnull))
    with pytest.raises(LorsError, match="could be started"):
        code_execution.check("pass")


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_choices(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        outcomes = [i < correct for i in range(samples)]
        expected = sum(any(chosen) for chosen in itertools.combinations(outcomes, k)) / comb(samples, k)
        assert code_execution.pass_at_k(samples, correct, k) == pytest.approx(expected)


class Solver(LM):  # type: ignore[misc]
    """Always solves `square`, every other time `double`, and never `negate`."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self.answer(request.args[0]) for request in requests]

    def answer(self, prompt: str) -> str:
        double, square, _ = PROBLEMS
        self.tried += prompt == double["prompt"]
        good = prompt == square["prompt"] or (prompt == double["prompt"] and self.tried % 2 == 0)
        return next(p for p in PROBLEMS if p["prompt"] == prompt)["canonical_solution"] if good else "    return None\n"

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture
def local_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """The example of the documentation, beside three problems in a file of the name that it gives."""
    example = (ROOT / "docs/humaneval.md").read_text().split("```yaml\n# humaneval_local.yaml\n")[1].split("```")[0]
    (tmp_path / "humaneval_local.yaml").write_text(example)
    (tmp_path / "humaneval_test.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    monkeypatch.chdir(tmp_path)
    return TaskManager(include_path=[str(BUILT_IN_TASKS), str(tmp_path)], include_defaults=False)


def evaluate(tasks: list[Any], manager: TaskManager, **options: bool) -> dict[str, Any]:
    outcome: dict[str, Any] = lm_eval.simple_evaluate(
        model=Solver(), tasks=tasks, task_manager=manager, log_samples=False, bootstrap_iters=0, **options
    )
    return outcome


@pytest.mark.usefixtures("permitted")
def test_the_tasks_run_in_lm_eval(local_tasks: TaskManager) -> None:
    tasks = list(local_tasks.load(["humaneval_local"])["tasks"].values())
    outcome = evaluate(tasks, local_tasks, confirm_run_unsafe_code=True)
    metrics = outcome["results"]
    assert set(metrics) == {"humaneval_greedy", *(f"humaneval_t0{tenths}" for tenths in (2, 4, 6, 8))}
    assert metrics["humaneval_greedy"]["pass@1,none"] == pytest.approx(1 / 3)
    for temperature in ("t02", "t04", "t06", "t08"):
        assert metrics[f"humaneval_{temperature}"]["pass@1,none"] == pytest.approx((1 + 1 / 2) / 3)
        assert metrics[f"humaneval_{temperature}"]["pass@10,none"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("tenths", [2, 4, 6, 8])
def test_the_sampled_tasks_draw_as_the_paper_does(local_tasks: TaskManager, tenths: int) -> None:
    tasks = local_tasks.load(["humaneval_local"])["tasks"]
    greedy, drawn = (tasks[f"humaneval_{name}"].dump_config() for name in ("greedy", f"t0{tenths}"))
    assert (greedy["repeats"], drawn["repeats"]) == (1, 10)
    sampling = {"do_sample": True, "temperature": tenths / 10, "top_p": 0.95}
    assert drawn["generation_kwargs"] == {**greedy["generation_kwargs"], **sampling}


def test_lm_eval_and_the_gate_both_refuse(local_tasks: TaskManager) -> None:
    tasks = [local_tasks.load(["humaneval_local"])["tasks"]["humaneval_greedy"]]
    with pytest.raises(ValueError, match="unsafe"):
        evaluate(tasks, local_tasks)
    with pytest.raises(RequestError, match="allow_code_execution"):
        evaluate(tasks, local_tasks, confirm_run_unsafe_code=True)

"""Tests lm-eval's own modules that run programs: they run them enclosed, and only with permission."""

from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lm_eval
import pytest

from lors_cli.errors import RequestError
from lors_cli.evaluation import code_eval, code_execution, humaneval

RIGHT, WRONG = "def add(a, b): return a + b", "def add(a, b): return a * b"
OUTSIDE = f"def add(a, b): open({str(Path(__file__))!r}); return a + b"  # a file of the user


def imported(task: str) -> ModuleType:
    """The module of functions beside lm-eval's `task`, as lm-eval imports it: anew."""
    path = Path(lm_eval.__file__).parent / "tasks" / task / "utils.py"
    spec = util.spec_from_file_location(f"utils_of_{task}", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    with code_eval.in_place():
        spec.loader.exec_module(module)
    return module


def test_the_modules_of_lm_eval_run_programs_here() -> None:
    tests, programs = ["assert add(2, 3) == 5"], [[RIGHT, WRONG, WRONG, WRONG]]
    with code_execution.permitted():
        for name in ("humaneval", "humaneval_infilling"):
            assert imported(name).pass_at_k(tests, programs, [1, 2, 10]) == {"pass@1": 0.25, "pass@2": 0.5}
        assert imported("mbpp").pass_at_1(tests * 2, [[RIGHT], [WRONG]]) == 0.5
        if code_execution.sandbox().kind == "namespaces":
            assert imported("mbpp").pass_at_1(tests, [[OUTSIDE]]) == 0


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(RequestError, match="allow_code_execution"):
        imported("humaneval")


def test_what_encloses_them_is_known() -> None:
    def task(metric: Any) -> Any:
        config = SimpleNamespace(filter_list=None)
        return SimpleNamespace(task_name="humaneval", config=config, _metric_fn_list={"pass": metric})

    with code_execution.permitted():
        own = task(imported("humaneval").pass_at_k)
    assert humaneval.permit(own, True) == code_execution.sandbox().kind
    assert humaneval.permit(task(len), True) == "none"
    with pytest.raises(RequestError, match="its own code starts them"):
        humaneval.permit(task(len), humaneval.SANDBOXED)

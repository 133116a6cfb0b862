"""The metric ``code_eval`` of the library evaluate, by which lm-eval's own humaneval and mbpp run programs, enclosed.

The library would fetch it from the hub, and it runs what a model wrote with all rights of the user.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import evaluate

from lors_cli.evaluation.code_execution import Verdict, check_all, pass_at_k


class CodeEval:
    """Stands for what ``evaluate.load("code_eval")`` returns."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The mean pass@k over problems, for every `k` that all have enough samples for, and no details.

        Args:
            references: the tests of each problem.
            predictions: the programs for each problem.
            k: of pass@k.

        Raises:
            RequestError: programs may not be run.
            LorsError: no process could be started.

        """
        pairs = zip(predictions, references, strict=True)
        verdicts = iter(check_all([f"{program}\n{tests}" for programs, tests in pairs for program in programs]))
        counts = [[next(verdicts) for _ in programs].count(Verdict.PASSED) for programs in predictions]
        sizes = [len(programs) for programs in predictions]
        enough = [number for number in k if min(sizes) >= number]
        return {f"pass@{one}": fmean(map(pass_at_k, sizes, counts, [one] * len(sizes))) for one in enough}, {}


@contextmanager
def in_place() -> Iterator[None]:
    """Within it, modules that load ``code_eval`` get this one."""
    load = evaluate.load

    def ours(path: str, *args: Any, **options: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *args, **options)

    evaluate.load = ours
    try:
        yield
    finally:
        evaluate.load = load


def measures(task: Any) -> bool:
    """Whether a metric of an lm-eval `task` is computed with this one."""
    metrics = getattr(task, "_metric_fn_list", {})  # a task that is a class of its own may have none
    modules = [getattr(function, "__globals__", {}) for function in metrics.values()]
    return any(isinstance(value, CodeEval) for module in modules for value in module.values())

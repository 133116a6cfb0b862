"""HumanEval (Chen et al. 2021, arXiv 2107.03374) for lm-eval: what ``tasks/humaneval_*.yaml`` name as functions.

lm-eval's own task fetches the code that runs the programs from the hub; here it is `code_execution`.
"""

import logging
from typing import Any

from lors_cli.errors import LorsError, request_error
from lors_cli.evaluation import code_eval, code_execution
from lors_cli.evaluation.code_execution import Verdict

log = logging.getLogger(__name__)

SANDBOXED = "sandboxed"  # a value of eval.allow_code_execution
PASSED, LATE = Verdict.PASSED, Verdict.LATE
OUTCOMES = {Verdict.FAILED: "fails", Verdict.LATE: "runs out of time"}
KS = (1, 10)  # the k of pass@k


def permit(task: Any, asked: bool | str) -> str:
    """What encloses the programs of a task that runs such.

    Args:
        task: of lm-eval.
        asked: the setting eval.allow_code_execution.

    Returns:
        "namespaces" or "limits", as `code_execution.sandbox`; "none" where the task's own code runs the programs.

    Raises:
        RequestError: this is not what was asked for.

    """
    key, runs = "eval.allow_code_execution", f"{task.task_name}, which runs the programs that the model writes"
    if not asked:
        raise request_error(
            key, f"sandboxed or true for {runs}", "false", "set it to sandboxed, or to true where that can do no harm"
        )
    steps = [step for one in task.config.filter_list or [] for step in one["filter"]]
    if any(step.get("filter_fn") is run_tests for step in steps) or code_eval.measures(task):
        within = code_execution.sandbox()
        kind, reason = str(within.kind), within.reason
    else:
        kind, reason = "none", "its own code starts them"
    if kind != "namespaces":
        if asked == SANDBOXED:
            raise request_error(
                key,
                f"a sandbox for the programs of {task.task_name}",
                f"none ({reason})",
                "run it where user namespaces are allowed; or, in a container or on a machine where"
                " programs can do no harm, set it to true",
            )
        log.warning(
            "eval: the programs of %s run outside of a sandbox (%s); see docs/humaneval.md", task.task_name, reason
        )
    return kind


def run_tests(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """A filter of lm-eval: what comes of each of the responses to each problem, with the problem's tests.

    Raises:
        RequestError: programs may not be run.
        LorsError: not even a solution that a problem brings passes here, so that no answer could.

    """
    for doc in docs[:1]:
        own = code_execution.check(program(doc, doc["canonical_solution"])) if "canonical_solution" in doc else PASSED
        if own != PASSED:
            raise LorsError(
                f"{doc.get('task_id')}: the problem's own solution {OUTCOMES[own]} here, so the answers of models"
                " cannot be tested; look at the problems, and at the limits of this machine"
            )
    programs = [program(doc, response) for answers, doc in zip(responses, docs, strict=True) for response in answers]
    verdicts = iter(code_execution.check_all(programs))
    return [[next(verdicts).value for _ in answers] for answers in responses]


def program(doc: dict[str, Any], completion: str) -> str:
    """The prompt, which begins a function, with its completion and its tests."""
    return f"{doc['prompt']}{completion}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def results(_doc: dict[str, Any], filtered: list[list[str]]) -> dict[str, float]:
    """The metrics of one problem: pass@k for every k that the number of samples allows, and the share out of time."""
    (verdicts,) = filtered
    passed, late = (verdicts.count(verdict) for verdict in (PASSED, LATE))
    passes = {f"pass@{k}": code_execution.pass_at_k(len(verdicts), passed, k) for k in KS if k <= len(verdicts)}
    return {**passes, "out_of_time": late / len(verdicts)}

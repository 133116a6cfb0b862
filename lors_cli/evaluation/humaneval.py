"""HumanEval (Chen et al. 2021, arXiv 2107.03374) for lm-eval: what ``tasks/humaneval_*.yaml`` name as functions.

lm-eval's own task fetches the code that runs the programs from the hub; here it is `code_execution`.
"""

from typing import Any

from lors_cli.errors import LorsError
from lors_cli.evaluation import code_execution
from lors_cli.evaluation.code_execution import Verdict

PASSED, LATE = Verdict.PASSED, Verdict.LATE
OUTCOMES = {Verdict.FAILED: "fails", Verdict.LATE: "runs out of time"}
KS = (1, 10)  # the k of pass@k


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

"""HumanEval (Chen et al. 2021, arXiv 2107.03374) for lm-eval: what ``tasks/humaneval_*.yaml`` name as functions.

lm-eval's own task fetches the code that runs the programs from the hub; here it is `code_execution`.
"""

from typing import Any

from lors_cli.evaluation import code_execution

KS = (1, 10)  # the k of pass@k


def run_tests(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[bool]]:
    """A filter of lm-eval: whether each of the responses to each problem passes the problem's tests.

    Raises:
        RequestError: programs may not be run.

    """
    programs = [program(doc, response) for answers, doc in zip(responses, docs, strict=True) for response in answers]
    verdicts = iter(code_execution.check_all(programs))
    return [[next(verdicts) for _ in answers] for answers in responses]


def program(doc: dict[str, Any], completion: str) -> str:
    """The prompt, which begins a function, with its completion and its tests."""
    return f"{doc['prompt']}{completion}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def results(_doc: dict[str, Any], filtered: list[list[bool]]) -> dict[str, float]:
    """The metrics of one problem: pass@k for every k that the number of samples allows."""
    (passed,) = filtered
    return {f"pass@{k}": code_execution.pass_at_k(len(passed), sum(passed), k) for k in KS if k <= len(passed)}

"""The benchmarks that ``eval.preset`` stands for. A preset is added by adding a row to `PRESETS`.

Configs are checked against these names, so this file imports nothing heavy.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval with the metric and the number of examples in the prompt that a paper reports it with."""

    task: str
    metric: str
    shots: int


def _accuracies(shots: int, *tasks: str) -> tuple[Benchmark, ...]:
    return tuple(Benchmark(task, "acc", shots) for task in tasks)


PRESETS: dict[str, tuple[Benchmark, ...]] = {
    # LoRS and SPP, tables 1: the seven tasks of Wanda (Sun et al. 2024), whose numbers are acc, not acc_norm
    "lors-paper": _accuracies(0, "arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "rte", "winogrande"),
    # LoRAM, tables 1 to 3 and appendix A
    "loram-csr": _accuracies(1, "arc_challenge", "arc_easy", "hellaswag", "openbookqa", "piqa", "winogrande"),
    "loram-math": (Benchmark("mathqa", "acc", 1), Benchmark("gsm8k_cot", "exact_match,strict-match", 8)),
    # pass@1 of the greedy answer, and of ten sampled ones at each temperature pass@1 and pass@10
    "humaneval": (
        Benchmark("humaneval_greedy", "pass@1", 0),
        *(Benchmark(f"humaneval_{temperature}", "pass@10", 0) for temperature in ("t02", "t04", "t06", "t08")),
    ),
    "mmlu": _accuracies(5, "mmlu"),
}

# A fact, arithmetic, an instruction, a text to go on with, and code.
SAMPLES = (
    "What is the capital of France?",
    "What is 17 + 25?",
    "Give three tips for staying healthy.",
    "Once upon a time, there was a little girl who",
    "Write a Python function that returns the largest number of a list.",
)

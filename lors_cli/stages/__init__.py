"""The stages, one verb a file. ``STAGES`` maps a stage to the module whose ``prepare`` gives its job, in their order.

They are imported when they run: the libraries of one stage would cost another seconds.
"""

STAGES = {
    "prune": "prune",
    "align": "align",
    "train": "train",
    "recover": "recover",
    "merge": "merge",
    "eval": "evaluate",
}

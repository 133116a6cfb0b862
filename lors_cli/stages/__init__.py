"""The stages, one verb a file. ``STAGES`` maps a stage to what prepares its job, in the order in which they run."""

from lors_cli.stages import evaluate, merge, prune, train

STAGES = {"prune": prune.prepare, "train": train.prepare, "merge": merge.prepare, "eval": evaluate.prepare}

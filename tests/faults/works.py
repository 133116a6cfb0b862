"""The kinds of runs that are disturbed, on a model of two blocks: each a command, and what has to be there before."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import pico
from tests.evaluation.tasks import write_tasks
from tests.models import gguf_writer

CONFIG = "config.yaml"
START = "start"


@dataclass(frozen=True)
class Work:
    """A kind of run.

    Attributes:
        name: of the kind.
        arguments: of the command.
        after: the kind whose result it starts from, `START` if from nothing.
        once: whether it is refused, and not "up to date", where its result is there.

    """

    name: str
    arguments: list[str]
    after: str = START
    once: bool = False

    @property
    def stage(self) -> str:
        """The command."""
        return self.arguments[0]


TEXT = {"dataset": "python-topics", "sequence_length": 16}
TRAINING = {
    "dataset": {"path": "python-topics", "limit": 2},
    "sequence_length": 16,
    "batch_size": 2,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_steps": 3,
    "save_steps": 1,
}
HELD_OUT = {"path": "python-topics", "split": "test", "limit": 1}


def prepare(box: Path) -> None:
    """Write the models, the tasks and the config into the box."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = pico.tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    pico.make(tokenizer, box / "model", **sizes)
    write_tasks(box / "tasks")
    few = {"vocab_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **few}))
    gguf_writer.write(model, box / "small.gguf", "llama", {"rope.dimension_count": 4})
    config: dict[str, Any] = {
        "model": "model",
        "output_dir": "run",
        "dtype": "float32",
        "device": "cpu",
        "prune": {"method": "wanda", "sparsity": "2:4", "calibration": {**TEXT, "samples": 2}, "states": "disk"},
        "train": {"method": "lors", "rank": 2, "init": "random", **TRAINING},
        "merge": {},
        "eval": {
            "models": ["dense", "pruned"],
            "perplexity": {**TEXT, "samples": 2},
            "tasks": ["words"],
            "task_dir": "tasks",
            "limit": 2,
            "batch_size": 2,
            "offline": True,
        },
    }
    (box / CONFIG).write_text(json.dumps(config, indent=1))


def _with(command: str, *overrides: str) -> list[str]:
    return [command, CONFIG, *overrides]


ALIGN = "align=" + json.dumps(TRAINING)
PERPLEXITY = 'eval={"models":["merged"],"perplexity":' + json.dumps({**TEXT, "samples": 2}) + "}"
BEST = ("train.keep=best", "train.eval_dataset=" + json.dumps(HELD_OUT), "train.eval_steps=1")
STRUCTURED = (
    'prune={"method":"structured_random","ratio":0.5,"keep_first":0,"keep_last":0}',
    "train.method=lora",
    "recover={}",
)
SIXTEENS = {"method": "gptq", "group_size": 16, "calibration": {**TEXT, "samples": 2}, "states": "disk"}
QUANTIZED = ("quantize=" + json.dumps(SIXTEENS),)
ON_CODES = (*QUANTIZED, "train.base=int4", "train.elastic_ranks=[2,1]")
ON_GRID = (*ON_CODES, "train.quantization_aware=true")
SEARCH = "merge.rank_search=" + json.dumps({**TEXT, "samples": 2, "evaluations": 3})
SOLVE = ("merge.requantize=gptq", "merge.calibration=" + json.dumps({**TEXT, "samples": 2}))
CALIBRATION = "prune.calibration=" + json.dumps({**TEXT, "samples": 2})

WORKS = [
    Work("prune-magnitude", _with("prune", 'prune={"method":"magnitude","sparsity":0.5}')),
    Work("prune-wanda", _with("prune")),
    Work("prune-sparsegpt", _with("prune", "prune.method=sparsegpt", "prune.sequential=linear")),
    Work("prune-dsnot", _with("prune", "prune.repair=dsnot", "prune.profile=owl", "prune.sparsity=0.5")),
    Work(
        "prune-tuned",
        _with(
            *("prune", "prune.update=least_squares"),
            'prune.tune_blocks={"steps":2,"batch_size":2,"target":"dense"}',
        ),
    ),
    Work("prune-structured", _with("prune", *STRUCTURED)),
    Work(
        "prune-taylor",
        _with("prune", 'prune={"method":"structured_taylor","ratio":0.5,"keep_first":0,"keep_last":0}', CALIBRATION),
    ),
    Work("prune-force", _with("prune", "--force"), "prune-wanda"),
    Work("prune-force-other", _with("prune", "prune.method=ria", "--force"), "prune-wanda"),
    Work("gguf", _with("prune", "model=small.gguf", 'prune={"method":"magnitude","sparsity":0.5}')),
    Work("train-lors", _with("train"), "prune-wanda"),
    Work("train-lora", _with("train", "train.method=lora"), "prune-wanda"),
    Work("train-spp", _with("train", "train.method=spp"), "prune-wanda"),
    Work("train-sqft", _with("train", "train.method=sqft"), "prune-wanda"),
    Work("train-full", _with("train", "train.method=full", "train.rank=null"), "prune-wanda"),
    Work("train-norms", _with("train", "train.also=[norms]"), "prune-wanda"),
    Work("train-best", _with("train", *BEST), "prune-wanda"),
    Work("align", _with("align", ALIGN), "prune-wanda"),
    Work("train-small", _with("train", *STRUCTURED), "prune-structured"),
    Work("recover", _with("recover", *STRUCTURED), "train-small"),
    Work("merge", _with("merge"), "train-lors"),
    Work("quantize", _with("quantize", *QUANTIZED), "prune-wanda"),
    Work("train-on-grid", _with("train", *ON_GRID), "quantize"),
    Work("train-on-codes", _with("train", *ON_CODES, "train.method=sqft"), "quantize"),
    Work("merge-on-grid", _with("merge", *ON_GRID, SEARCH), "train-on-grid"),
    Work("merge-gptq", _with("merge", *ON_CODES, "train.method=sqft", *SOLVE), "train-on-codes"),
    Work("pack-codes", ["pack", "run/merged", "packed"], "merge-on-grid", once=True),
    Work("unpack-codes", ["unpack", "packed", "unpacked"], "pack-codes", once=True),
    Work("eval", _with("eval"), "merge"),
    Work("eval-perplexity", _with("eval", PERPLEXITY.replace("merged", "pruned")), "prune-wanda"),
    Work("run", _with("run", ALIGN, PERPLEXITY)),
    Work("run-force", _with("run", "eval=null", "--force"), "merge"),
    Work("pack", ["pack", "run/merged", "packed"], "merge", once=True),
    Work("pack-force", ["pack", "run/merged", "packed", "--force"], "pack"),
    Work("unpack", ["unpack", "packed", "unpacked"], "pack", once=True),
    Work("report", ["report", "run", "--output", "reports"], "eval"),
    Work("plots", ["inspect", "run/adapter", "--plots"], "merge"),
    Work("sweep", ["sweep", CONFIG, "train.learning_rate=1e-2,3e-3", "merge=null", "eval=null", *BEST]),
]


def named(names: list[str]) -> list[Work]:
    """The kinds that are called so or begin so, all if none is named; and which have to be done before them.

    Raises:
        ValueError: a name is of no kind.

    """
    chosen = [work for work in WORKS if not names or any(_fits(work, name) for name in names)]
    if unknown := [name for name in names if not any(_fits(work, name) for work in WORKS)]:
        raise ValueError(f"no kind of run is called {', '.join(unknown)}; known: {', '.join(w.name for w in WORKS)}")
    return chosen


def _fits(work: Work, name: str) -> bool:
    return name in (work.name, work.stage)


def needed(chosen: list[Work]) -> list[Work]:
    """The kinds in the order in which they can be done, with those whose results others start from."""
    wanted, by_name = {work.name for work in chosen}, {work.name: work for work in WORKS}
    for work in chosen:
        while work.after != START:
            work = by_name[work.after]
            wanted.add(work.name)
    return [work for work in WORKS if work.name in wanted]

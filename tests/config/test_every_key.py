"""Every key is used or refused: whatever the method, a key that is set either belongs to it or is named."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from lors_cli import adapters, pruning
from lors_cli.config.fields import Section
from lors_cli.config.load import load
from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.config.train import Train
from lors_cli.errors import RequestError

# What no method is without: where things come from and go to, and how a training is run and watched.
ALWAYS = {
    "prune": {"input", "method", "overrides"},
    "train": {
        *("input", "method", "target_modules", "dataset", "eval_dataset", "sequence_length", "packing", "overlong"),
        *("append_eos", "ignore_fields", "batch_size", "batch_tokens", "micro_batch_size", "learning_rate", "schedule"),
        *("warmup", "weight_decay", "max_grad_norm", "epochs", "max_steps", "max_tokens", "repeat", "dtype"),
        *("gradient_checkpointing", "chunked_loss", "distill", "parallel", "save_steps", "keep_checkpoints"),
        *("logging_steps", "report_to", "also", "adapter", "resume_from", "save_optimizer"),
    },
}
USED = {  # by key: the methods that use it, apart from the options that their rows declare
    "sparsity": set(pruning.METHODS),
    "profile": set(pruning.METHODS) - {"from_mask"},
    "repair": set(pruning.METHODS),
    "mask": {"from_mask"},
    "sequential": {name for name, row in pruning.METHODS.items() if row.calibrated},
    "states": set(pruning.METHODS),
    "calibration": set(pruning.all_methods()),  # a log line says so where it is not used
    "rank": {name for name, row in adapters.METHODS.items() if row.has_rank},
    "alpha": {name for name, row in adapters.METHODS.items() if row.has_rank},
    "formulation": set(adapters.METHODS),
    "init": {name for name, row in adapters.METHODS.items() if row.low_rank},
    "init_steps": {name for name, row in adapters.METHODS.items() if row.init != "random"},
    "base": {"lors", "sqft", "lora"},
    "elastic_ranks": {name for name, row in adapters.METHODS.items() if row.low_rank},
    "elastic_sampling": set(),  # without elastic_ranks
    "resume_data": set(),  # without resume_from
    "also_learning_rate": set(),  # without what it is for
    "keep": set(),  # without an eval_dataset
    "eval_steps": set(),
}


def other(field: FieldInfo, name: str, method: str) -> Any:
    """A value that is not the default."""
    special = {"sparsity": 0.25, "mask": "m.safetensors", "formulation": "nowhere", "calibration": {"dataset": "b"}}
    special |= {"ratio": 0.25, "merge_cache": "full", "base": {"lora": "nf4", "sqft": "int4"}.get(method, "packed")}
    special |= {"elastic_ranks": [16, 8]}
    if name in special:
        return special[name]
    kinds = [field.annotation, *get_args(field.annotation)]
    choices = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if choices or name in ("profile", "repair"):
        return {"profile": "owl", "repair": "dsnot"}.get(name) or next(one for one in choices if one != field.default)
    if bool in kinds:
        return not field.default
    return 0.05 if float in kinds and field.default != 0.05 else 7


def cases() -> list[tuple[str, str, str]]:
    sections: list[tuple[str, type[Section], Collection[str]]] = [
        ("prune", Prune, pruning.all_methods()),
        ("train", Train, adapters.METHODS),
    ]
    return [
        (section, method, name)
        for section, kind, methods in sections
        for method in methods
        for name in complete(kind).model_fields
        if name not in ALWAYS[section]
    ]


@pytest.mark.parametrize(("section", "method", "name"), cases())
def test_a_key_is_of_the_method_or_named(tmp_path: Path, section: str, method: str, name: str) -> None:
    kind: type[Section] = Prune if section == "prune" else Train
    row: Any = pruning.all_methods()[method] if section == "prune" else adapters.METHODS[method]
    options = row.options if section == "prune" else row.formulation().options
    needed: dict[str, Any] = {"sparsity": "2:4" if name == "permute" else 0.5}
    if method not in pruning.METHODS or method == "from_mask":
        needed = {}
    needed |= {"ratio": 0.5} if method in pruning.STRUCTURED else {}
    needed |= {"mask": "a.safetensors"} if method == "from_mask" else {}
    needed |= {"base": "int4"} if name == "quantization_aware" and method in ("lors", "sqft") else {}
    texts = {"calibration": {"dataset": "a"}} if section == "prune" else {"dataset": "a"}
    value = other(complete(kind).model_fields[name], name, method)
    content = {"model": "m", "output_dir": "o", section: {"method": method, **needed, **texts, name: value}}
    path = tmp_path / "c.yaml"
    path.write_text(str(content).replace("True", "true").replace("False", "false"))
    try:
        load(path, [])
        named = False
    except RequestError as error:
        named = any(problem.key.startswith(f"{section}.{name}") for problem in error.problems)
    used = name in options.model_fields or method in USED.get(name, ())
    assert used != named or name == "formulation", "a key that a method does not use has to be named, and no other"

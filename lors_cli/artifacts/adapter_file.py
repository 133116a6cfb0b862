"""Adapters on disk, in PEFT's form: ``adapter_model.safetensors`` and ``adapter_config.json``.

A LoRA adapter loads in plain PEFT. The others name a ``peft_type`` that PEFT does not know, so that it refuses them:
applied without the mask they would be another model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lors_cli import adapters
from lors_cli.artifacts import files, tensors
from lors_cli.artifacts.publish import written_aside
from lors_cli.errors import LorsError, request_error

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."


@dataclass
class AdapterFile:
    """The content of an adapter directory; `modules` maps a linear's name to its tensors."""

    method: str
    rank: int
    alpha: float
    modules: dict[str, dict[str, Tensor]]

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank


def save(directory: Path, content: AdapterFile, *, base: str, dropout: float) -> None:
    """Write `content` into `directory`; `base` is the model that it was trained for."""
    write_tensors(content.modules, directory / WEIGHTS)
    config = {
        "peft_type": adapters.METHODS[content.method].peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": content.rank,
        "lora_alpha": content.alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(content.modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    files.write_json(directory / CONFIG, config)


def save_whole(directory: Path, content: AdapterFile, *, base: str, dropout: float) -> None:
    """Write the adapter beside its final name and rename it. An older adapter there is replaced.

    Raises:
        RequestError: `directory` holds something else.
        OSError, LorsError: it cannot be written; nothing is left of it.

    """
    directory = directory.resolve()
    if directory.exists():
        held = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["no directory"]
        if others := [name for name in held if name not in (WEIGHTS, CONFIG)]:
            expected = "a new directory, or one that holds an adapter and nothing else"
            raise request_error("directory", expected, f"{directory} ({others[0]})", "name another directory")
    with written_aside(directory) as aside:
        save(aside, content, base=base, dropout=dropout)


def write_tensors(modules: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Write the tensors of adapters, by module and name, under PEFT's names."""
    flat = {
        f"{PREFIX}{module}.{name}.weight": tensor.detach().cpu()
        for module, named in modules.items()
        for name, tensor in named.items()
    }
    tensors.write(flat, path)


def read_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter file, by module and name."""
    modules: dict[str, dict[str, Tensor]] = {}
    with tensors.open_shard(path) as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            module, name = key.removeprefix(PREFIX).removesuffix(".weight").rsplit(".", 1)
            modules.setdefault(module, {})[name] = file.get_tensor(key)
    return modules


def load(directory: Path, key: str) -> AdapterFile:
    """Read an adapter directory, made by lors or (LoRA) by PEFT; `key` is the config's path to it.

    Raises:
        RequestError: there is none, or it is of a kind that lors cannot merge.
        LorsError: a file is damaged.

    """
    config = read_config(directory, key)
    return AdapterFile(**config, modules=read_tensors(directory / WEIGHTS))


def read_config(directory: Path, key: str) -> dict[str, Any]:
    """The method, rank and alpha of an adapter directory.

    Raises:
        RequestError: there is none, or it is of a kind that lors cannot merge.
        LorsError: a file is damaged.

    """
    wanted = f"an adapter directory ({CONFIG} and {WEIGHTS})"
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise request_error(key, wanted, f"{directory}, which has no {name}", "run `lors train` first")
    try:
        config = json.loads((directory / CONFIG).read_text())
    except ValueError as error:
        raise LorsError(f"{directory / CONFIG} is damaged: {error}") from None
    by_type = {row.peft_type: name for name, row in adapters.METHODS.items()}
    kind = config.get("peft_type")
    if kind not in by_type:
        raise request_error(key, f"an adapter of type {', '.join(by_type)}", repr(kind), "train it with lors")
    for option in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"):
        if config.get(option):
            raise request_error(
                key, f"a LoRA adapter without {option}", repr(config[option]), "train it without", directory
            )
    return {"method": by_type[kind], "rank": config["r"], "alpha": config["lora_alpha"]}


def read_dropout(directory: Path) -> float:
    """The dropout that an adapter was trained with; `directory` is one that `read_config` takes."""
    dropout: float = json.loads((directory / CONFIG).read_text()).get("lora_dropout") or 0.0
    return dropout

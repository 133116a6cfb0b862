"""Adapters on disk, in PEFT's form: ``adapter_model.safetensors`` and ``adapter_config.json``.

A LoRA adapter loads in plain PEFT. The others name a ``peft_type`` that PEFT does not know, so that it refuses them:
applied without the mask they would be another model. So does what `lors recover` writes with a mask. What was trained
beside the adapters has the names that PEFT gives it, so that a LoRA adapter takes it along there: norms are
`modules_to_save`, and biases of linears are "lora_only".
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli import adapters
from lors_cli.artifacts import files, inputs, model_files, peft_options, tensors
from lors_cli.artifacts.file_writer import FileWriter
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.publish import written_aside
from lors_cli.errors import LorsError, request_error

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
NAMED = "base_model_name_or_path"  # what the config calls the model
MADE_ON = "made_on"  # where the weights file keeps the digests of the model's tensors: PEFT reads it without a word
PICKLED = "adapter_model.bin"


@dataclass
class AdapterFile:
    """The content of an adapter directory.

    Attributes:
        method: a key of `ON_DISK`.
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        modules: the tensors by the names of their linears.
        made_on: the digests of the tensors of its model, as `lors_cli.models.identity` has them; empty if not recorded.
        config: all of adapter_config.json; empty before it is written.
        scaling: the rank and alpha of linears for which they are not `rank` and `alpha`.
        quantization_aware: whether effective weights are on the grid of a quantised model.
        vectors: trained values of other parameters of the model, of norms and biases, by their names in it.
        written: when its files were, in seconds since 1970.

    """

    method: str
    rank: int
    alpha: float
    modules: dict[str, dict[str, Tensor]]
    made_on: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    scaling: dict[str, tuple[int, float]] = field(default_factory=dict)
    written: float = 0.0
    vectors: dict[str, Tensor] = field(default_factory=dict)
    quantization_aware: bool = False

    def of(self, linear: str) -> tuple[int, float]:
        """The rank and the alpha of the update of a linear."""
        return self.scaling.get(linear, (self.rank, self.alpha))

    @property
    def model(self) -> str | None:
        """What the config calls the model that it was made on."""
        return self.config.get(NAMED) or None

    def lacks(self, name: str) -> bool:
        """Whether the config says that the linear `name` is adapted, and the file has nothing for it."""
        return name not in self.modules and peft_options.targets(self.config, name)


def save(directory: Path, content: AdapterFile, *, base: str, dropout: float) -> None:
    """Write `content` into `directory`; `base` is the model that it was trained for, a directory or a hub id."""
    place = Path(base).expanduser()
    biases = {name for name in content.vectors if name.rpartition(".")[0] in content.modules}
    norms = {name.rpartition(".")[0] for name in content.vectors.keys() - biases}
    others = {peft_options.stored_name(name, of_linear=name in biases): one for name, one in content.vectors.items()}
    write_tensors(content.modules, directory / WEIGHTS, others=others, made_on=content.made_on)
    config = {
        "peft_type": adapters.ON_DISK[content.method].peft_type,
        "task_type": "CAUSAL_LM",
        NAMED: str(place.absolute()) if base and place.exists() else base,
        "r": content.rank,
        "lora_alpha": content.alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(content.modules),
        "bias": peft_options.OWN_BIASES if biases else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **({"modules_to_save": sorted(norms)} if norms else {}),
        **({peft_options.ON_GRID: True} if content.quantization_aware else {}),
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


def write_tensors(
    modules: Mapping[str, Mapping[str, Tensor]],
    path: Path,
    *,
    others: Mapping[str, Tensor] | None = None,
    made_on: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of adapters, by module and name, under PEFT's names, with the digests of their model.

    `others` have the names that they are written under, apart from PEFT's prefix.
    """
    flat = {
        f"{PREFIX}{module}.{name}.weight": tensor.detach().cpu()
        for module, named in modules.items()
        for name, tensor in named.items()
    }
    flat |= {f"{PREFIX}{name}": tensor.detach().cpu() for name, tensor in (others or {}).items()}
    metadata = {"format": "pt", **({MADE_ON: json.dumps(made_on)} if made_on else {})}
    writer = FileWriter(path, flat, metadata=metadata)  # the library would write metadata in any order
    for name, tensor in flat.items():
        writer.write(name, tensor)


def read_tensors(path: Path, *, without: Collection[str] = ()) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter file, by module and name; those `without` are left out.

    Raises:
        LorsError: the file is damaged.
        ValueError: one does not have a name that `write_tensors` gives.

    """
    modules: dict[str, dict[str, Tensor]] = {}
    with tensors.open_shard(path) as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            if key in without:
                continue
            module, _, name = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
            if not module or key != f"{PREFIX}{module}.{name}.weight":
                raise ValueError(key)
            modules.setdefault(module, {})[name] = file.get_tensor(key).clone()  # not the file, if that is written to
    return modules


@inputs.reads_model(weights=True)
def load(directory: Path, key: str, *, uniform: bool = True) -> AdapterFile:
    """Read an adapter directory, made by lors or (LoRA) by PEFT; `key` is the config's path to it.

    Tensors in 16 bits become float32, in which every method computes its update. With `uniform` all linears have to
    have the same rank and alpha.

    Raises:
        RequestError: there is none, or it is of a kind that lors cannot merge, or holds tensors that it cannot use.
        LorsError: a file is damaged.

    """
    config, path = read_config(directory, key), directory / WEIGHTS
    kind = adapters.ON_DISK[config["method"]].adapter
    names = kind.parameter_names
    wanted, remedy = f"tensors {' and '.join(names)} of linears, floats and finite", "copy or train the adapter again"
    vectors = _read_vectors(path, content := _content(directory, key), names)
    try:
        modules = read_tensors(path, without=vectors)
    except ValueError as error:
        remedy = f"save it with PEFT's save_embedding_layers=False, or {peft_options.MERGE_WITH_PEFT}"
        raise request_error(key, wanted, f"a tensor {error}", remedy, path) from None
    if not modules:
        raise request_error(key, wanted, "none", remedy, path)
    rank, alpha = config["rank"], config["alpha"]
    scaling = {module: peft_options.scaling(content, key, directory / CONFIG, module) for module in modules}
    scaling = {module: own for module, own in scaling.items() if own != (rank, alpha)}
    if uniform and scaling:
        module, (other, own) = min(scaling.items())
        got = f"rank {other} and alpha {own:g} for {module}, rank {rank} and alpha {alpha:g} in general"
        expected = "one rank and alpha for all linears, which `lors merge` alone does not need"
        raise request_error(key, expected, got, "merge it and name the merged model", directory / CONFIG)
    for module, named in modules.items():
        if foreign := named.keys() - set(names):
            without = "save it with PEFT's save_embedding_layers=False, or train it without this tensor"
            raise request_error(key, wanted, f"a tensor {module}.{min(foreign)}", without, path)
        if missing := set(names) - named.keys():
            raise request_error(key, wanted, f"no {min(missing)} of {module}", remedy, path)
        for name, tensor in named.items():
            if name not in kind.bit_names:
                named[name] = _in_full(key, f"{module}.{name}", tensor, path)
            elif tensor.dtype != torch.uint8:
                got = f"{module}.{name} of {tensors.dtype_name(tensor.dtype)}"
                raise request_error(key, "masks of uint8", got, remedy, path)
    for name, tensor in vectors.items():
        if tensor.dim() != 1:
            got = f"modules_to_save with {name} of shape {tuple(tensor.shape)}"
            without = f"train it without, or {peft_options.MERGE_WITH_PEFT}"
            raise request_error(key, "trained vectors of norms and biases beside the adapters", got, without, path)
    trained = {
        str(peft_options.parameter(content, name.removeprefix(PREFIX))): _in_full(key, name, tensor, path)
        for name, tensor in vectors.items()
    }
    with tensors.open_shard(path) as file:
        metadata = file.metadata() or {}
    try:
        made_on = {name: [*digests] for name, digests in json.loads(metadata.get(MADE_ON, "{}")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise LorsError(f"{path}: its {MADE_ON} is damaged: {error}; copy or train the adapter again") from None
    written = max(file.stat().st_mtime for file in (path, directory / CONFIG))
    facts: dict[str, Any] = {"made_on": made_on, "config": content, "scaling": scaling, "written": written}
    return AdapterFile(**config, modules=modules, vectors=trained, **facts)


def _read_vectors(path: Path, config: dict[str, Any], names: Collection[str]) -> dict[str, Tensor]:
    """What an adapter file has beside the tensors `names` of linears, as its config says, by the names in the file."""
    vectors = {}
    with tensors.open_shard(path) as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            of_linear = any(key.endswith(f".{name}.weight") for name in names)
            if key.startswith(PREFIX) and not of_linear and peft_options.parameter(config, key.removeprefix(PREFIX)):
                vectors[key] = file.get_tensor(key).clone()
    return vectors


def _in_full(key: str, name: str, tensor: Tensor, path: Path) -> Tensor:
    """A tensor of an adapter file in float32 at least.

    Raises:
        RequestError: it does not hold finite floats.

    """
    wanted = "tensors of floats that are finite"
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        got = f"{name} of {tensors.dtype_name(tensor.dtype)}"
        raise request_error(key, wanted, got, "save it in float32", path)
    if not bool(tensor.isfinite().all()):
        raise request_error(key, wanted, f"NaN or infinity in {name}", "copy or train the adapter again", path)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def read_config(directory: Path, key: str) -> dict[str, Any]:
    """The method, rank and alpha of an adapter directory.

    Raises:
        RequestError: there is none, or it is damaged, or of a kind that lors cannot merge.

    """
    wanted = f"an adapter directory ({CONFIG} and {WEIGHTS})"
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise request_error(key, wanted, f"{directory}, which has no {name}", _where_it_is(directory))
    try:
        model_files.files(directory)
    except FilesError as error:
        raise request_error(key, wanted, error.got, error.remedy) from None
    config = _content(directory, key)
    peft_options.check_types(config, key, directory / CONFIG)
    by_type = {row.peft_type: name for name, row in adapters.ON_DISK.items()}
    kind = config.get("peft_type")
    if kind not in by_type:
        remedy = f"train it with lors, or, if it is of a kind that can be merged, {peft_options.MERGE_WITH_PEFT}"
        raise request_error(key, f"an adapter of type {', '.join(by_type)}", repr(kind), remedy, directory / CONFIG)
    peft_options.check(config, key, directory / CONFIG)
    rank, alpha = peft_options.scaling(config, key, directory / CONFIG)
    on_grid = peft_options.on_grid(config, adapters.ON_DISK[by_type[kind]], key, directory / CONFIG)
    return {"method": by_type[kind], "rank": rank, "alpha": alpha, peft_options.ON_GRID: on_grid}


def _content(directory: Path, key: str) -> dict[str, Any]:
    try:
        return files.read_object(directory / CONFIG)
    except ValueError as error:
        got = f"a damaged file: {error}"
        raise request_error(key, "a JSON object", got, peft_options.COPY, directory / CONFIG) from None


def _where_it_is(directory: Path) -> str:
    """What to do about a directory that is not one of an adapter."""
    if (directory / PICKLED).is_file():
        save = f'PeftModel.from_pretrained(model, "{directory}").save_pretrained(...)'
        return f"lors opens no pickles such as {PICKLED}: write it as safetensors with PEFT, {save}, and name that"
    inside = sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
    return f"name the adapter in it: {inside[0]}" if inside else "run `lors train` first"


def read_dropout(directory: Path) -> float:
    """The dropout that an adapter was trained with; `directory` is one that `read_config` takes."""
    dropout: float = _content(directory, "adapter").get("lora_dropout") or 0.0
    return dropout

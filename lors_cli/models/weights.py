"""The tensors of a model directory by the names that the model's modules give them.

Files may name a tensor otherwise than the module that holds it (``embed_out`` of GPT-NeoX, a base model without its
prefix, ``language_model.model`` of models with vision). transformers renames them when it loads; its own functions are
asked here. What no module takes, what no file gives and what is not a plain float is refused by name.
"""

import logging
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)

from lors_cli.artifacts import quantized_files, tensors
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.packed_model import PackedFiles
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.errors import RequestError, request_error
from lors_cli.sparsity.packed import Stored

log = logging.getLogger(__name__)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WANTED = "safetensors files that hold every tensor of the model, once and as plain floats"
ONE_SOURCE = "copy config.json and the weight files again, from one source"
RESAVE = "AutoModelForCausalLM.from_pretrained('{}').save_pretrained('NEW_DIRECTORY'{})"


class Weights:
    """Which tensor in the files belongs to which parameter or buffer of a (skeleton) model.

    Those of a quantised model are the numbers that it computes with in the dtype of `model`.

    Where tied parameters have different numbers in the files, the model's are untied, as transformers does.

    Attributes:
        files: the tensors by the names that they have in the files.
        by_file: the name in the model of each of those that the model takes, by its name in the files.
        written: the name that ``save_pretrained`` would give each tensor, by its name in the model.
        fused: names in the files of tensors that transformers takes apart or joins when it loads them.
        unknown: names in the files of tensors that the model does not take.
        missing: names in the model of tensors that no file has.

    Raises:
        FilesError: a file is missing or damaged, or two tensors are meant for one parameter.

    """

    def __init__(self, directory: Path, model: PreTrainedModel) -> None:
        self.files = quantized_files.files(directory, model.dtype)
        self._model = model
        mapping = get_model_conversion_mapping(model)
        self._renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        self._converters = [one for one in mapping if isinstance(one, WeightConverter)]
        self._state = model.state_dict(keep_vars=True)
        self.by_file: dict[str, str] = {}
        self.fused: list[str] = []
        unknown: dict[str, str] = {}  # their names in the files, by what renaming gives
        for stored in sorted(self.files.layout, key=dot_natural_key):
            name, converter = self._renamed(stored)
            if converter is not None:
                self.fused.append(stored)
            elif name not in self._state:
                unknown[name] = stored
            else:
                self.by_file[stored] = name
        self._places = self._by_name(directory)
        report = SimpleNamespace(missing_keys=set(), unexpected_keys=set(unknown))
        model._adjust_missing_and_unexpected_keys(report)  # such as rotary frequencies, which models compute
        self.unknown = sorted(unknown[name] for name in report.unexpected_keys)
        if left := sorted(unknown[name] for name in unknown.keys() - report.unexpected_keys):
            log.info("%s: transformers leaves out %d tensors, such as %s", directory, len(left), left[0])
        self.missing = [] if self.fused else [name for name in self._state if name not in self._places]
        self.written = self._written_names()

    def has(self, name: str) -> bool:
        """Whether the files have the tensor `name` of the model as it is."""
        return name in self._places

    def stored_name(self, name: str) -> str:
        """The name in the files of the tensor `name` of the model."""
        return self._places[name]

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` of the model, in memory of its own."""
        return self.files.tensor(self._places[name])

    def stored(self, name: str) -> Stored | None:
        """The tensor `name` of the model as a packed model has it; None if the model is not packed."""
        files = self.files.inner if isinstance(self.files, QuantizedFiles) else self.files
        return files.stored(self._places[name]) if isinstance(files, PackedFiles) else None

    def entry(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, in the files, of the tensor `name` of the model."""
        return self.files.layout[self._places[name]]

    def _renamed(self, stored: str) -> tuple[str, object]:
        """The name in the model that loading gives, and what else it does to the tensor, as transformers has it."""
        prefix = self._model.base_model_prefix
        name, converter = rename_source_key(stored, self._renamings, self._converters, prefix, self._state)
        if name not in self._state and stored in self._state:
            name, converter = rename_source_key(stored, [], [], prefix, self._state)
        return name, converter if name in self._state else None

    def _by_name(self, directory: Path) -> dict[str, str]:
        """The name in the files by the name in the model; parameters that are tied have one and the same."""
        places: dict[str, str] = {}
        for stored, name in self.by_file.items():
            if name in places:
                reason = f"has {places[name]} and {stored}, which are both meant for {name}"
                raise FilesError(directory, reason, "keep the tensors of one save only")
            places[name] = stored
        shared: defaultdict[int, list[str]] = defaultdict(list)
        for name, tensor in self._state.items():
            shared[id(tensor)].append(name)
        for names in shared.values():
            first = next((name for name in names if name in places), None)
            for name in names:
                if first and name in places and not self._equal(places[first], places[name], self._state[name].dtype):
                    self._untie(name)
                elif first:
                    places[name] = places[first]
        return places

    def _equal(self, one: str, other: str, dtype: torch.dtype) -> bool:
        if one == other or self.files.layout[one][0] != self.files.layout[other][0]:
            return one == other
        return torch.equal(self.files.tensor(one).to(dtype), self.files.tensor(other).to(dtype))

    def _untie(self, name: str) -> None:
        """Give the model's parameter `name` a weight of its own."""
        module, _, leaf = name.rpartition(".")
        own = nn.Parameter(torch.empty_like(self._state[name], device="meta"), requires_grad=False)
        self._model.get_submodule(module).register_parameter(leaf, own)
        self._state[name] = own
        self._model.config.tie_word_embeddings = False
        self._model.lors_untied = True
        log.warning("%s differs from what config.json ties it to; both are kept, as transformers does", name)

    def _written_names(self) -> dict[str, str]:
        used = [one.reverse_transform() for one in self._renamings[::-1] if one.was_used()]
        written = {}
        for name in self._state:
            written[name] = name
            for renaming in used:
                written[name], _ = renaming.rename_source_key(written[name])
        if all(self._renamed(stored) == (name, None) for name, stored in written.items()):
            return written
        return {name: name for name in self._state}


def keep_wider(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the tensors that a class keeps in float32 in a 16-bit model that dtype, as transformers does on loading."""
    if plan := model._get_dtype_plan(dtype):
        pattern, groups, _ = build_glob_alternation(list(plan))
        for name, tensor in model.state_dict(keep_vars=True).items():
            if found := pattern.search(name):
                tensor.data = tensor.data.to(plan[groups[str(found.lastgroup)]])


def open_weights(directory: Path, model: PreTrainedModel, key: str, *, converts: bool = False) -> Weights:
    """The weights of a (skeleton) model in `directory`; every tensor in the files is one of them, as a plain float.

    Where transformers itself will load them, it also `converts` those that it joins or splits.

    Raises:
        RequestError: a file is missing or damaged; a tensor is missing, stands in two files, has another shape, is not
            stored as plain floats, or belongs to nothing in the model.

    """
    try:
        weights = Weights(directory, model)
    except FilesError as error:
        raise request_error(key, WANTED, error.got, error.remedy, file=directory) from None
    state = model.state_dict(keep_vars=True)
    if bits := [name for name in weights.unknown if name.endswith(".bitmask")]:
        got = f"{bits[0]}: weights that are stored without their zeros"
        remedy = "save it with them: llm-compressor's model.save_pretrained('NEW_DIRECTORY', save_compressed=False)"
        raise request_error(key, WANTED, got, remedy, file=directory)
    _check_floats(weights, state, key, directory)
    if weights.fused and not converts:
        got = f"{weights.fused[0]}, one of {len(weights.fused)} tensors that transformers joins or splits on loading"
        remedy = f"save it as the modules have it: {RESAVE.format(directory, ', save_original_format=False')}"
        raise request_error(key, WANTED, got, remedy, file=directory)
    if weights.missing:
        raise _missing(weights, model, key, directory)
    for name, like in state.items():
        if weights.has(name) and weights.entry(name)[0] != tuple(like.shape):
            got = f"{name} of shape {weights.entry(name)[0]}"
            raise request_error(key, f"{name} of shape {tuple(like.shape)}", got, ONE_SOURCE, file=directory)
    if weights.unknown:
        raise unknown(weights, model, key, directory)
    return weights


def _check_floats(weights: Weights, state: dict[str, Tensor], key: str, directory: Path) -> None:
    """Refuse numbers that are codes for others, as float8 and integers are, except where the model counts with them."""
    for stored in [*weights.by_file, *weights.fused, *weights.unknown]:
        like, dtype = state.get(weights.by_file.get(stored, "")), weights.files.layout[stored][1]
        if dtype not in FLOATS and (like is None or like.is_floating_point()):
            scales = [name for name in weights.unknown if "scale" in name or "zero" in name]
            got = f"{stored} in dtype {tensors.dtype_name(dtype)}, without a quantization_config that tells its meaning"
            got += f" (and {scales[0]}, which looks like a scale)" if scales else ""
            remedy = "use the model before quantisation, in bfloat16, float16 or float32"
            raise request_error(key, WANTED, got, remedy, file=directory)


def _missing(weights: Weights, model: PreTrainedModel, key: str, directory: Path) -> RequestError:
    name = weights.missing[0]
    got = f"no tensor {name} among {len(weights.files.layout)}"
    remedy = ONE_SOURCE
    output = model.get_output_embeddings()
    if output is not None and len(weights.missing) == 1 and model.get_parameter(name) is output.weight:
        remedy = (
            f"if the model shares the embeddings' weight, set tie_word_embeddings: true in config.json; else {remedy}"
        )
    elif weights.unknown:
        got += f"; {len(weights.unknown)} others belong to nothing in the model, among them {weights.unknown[0]}"
        remedy = _unwrapped(weights) or f"{remedy}, in the form that transformers loads"
    return request_error(key, WANTED, got, remedy, file=directory)


def _unwrapped(weights: Weights) -> str | None:
    """What to do where all that is missing is there by names with a part more, as wrappers of a model give them.

    Such are ``module.`` of DistributedDataParallel and ``_orig_mod.`` of ``torch.compile``.
    """
    first = weights.missing[0]
    prefixes = [stored.removesuffix(first) for stored in weights.unknown if stored.endswith(f".{first}")]
    parts = [f"{part}." for part in weights.unknown[0].split(".")[:-1]]
    for part in [*prefixes, *parts]:
        if {stored.replace(part, "") for stored in weights.unknown} <= set(weights.missing):
            rename = f"{{name.replace({part!r}, ''): tensor for name, tensor in load_file(FILE).items()}}"
            return (
                f"the names have {part!r} too much: save the model without what it was wrapped in, or, for each FILE of"
                f" {', '.join(path.name for path in weights.files.shards)}, call"
                f" save_file({rename}, FILE, {{'format': 'pt'}}) of safetensors.torch"
            )
    return None


def unknown(weights: Weights, model: PreTrainedModel, key: str, directory: Path) -> RequestError:
    """The error for tensors in the files to which nothing in the model corresponds."""
    name, more = weights.unknown[0], len(weights.unknown) - 1
    got = f"{name}{f' and {more} more' if more else ''}, to which nothing in {type(model).__name__} corresponds"
    depth = model.config.get_text_config().num_hidden_layers
    numbers = [int(number) for number in re.findall(r"\.(\d+)\.", name)]
    deeper = f"correct num_hidden_layers ({depth}) in config.json; or " if numbers and numbers[0] >= depth else ""
    remedy = f"{deeper}if the model is right without them, save it so: {RESAVE.format(directory, '')}"
    return request_error(key, WANTED, got, remedy, file=directory)

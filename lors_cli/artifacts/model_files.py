"""Which files make up a model directory. Every reader, copier and digest asks here, so that all see the same model.

The rule for weights is the one by which transformers loads them, and lm-eval with it.
"""

import json
from pathlib import Path
from typing import Any

from lors_cli.artifacts import links
from lors_cli.artifacts.files import each_key_once, read_object
from lors_cli.artifacts.links import FilesError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Folders of small files that transformers reads beside a model: named chat templates, and code for generation.
FOLDERS = ("additional_chat_templates", "custom_generate")
WEIGHTS = ".safetensors"
STRUCTURE = "structure.json"  # of a model that is smaller than its config says
# What config.json may say about the form in which weights are stored, which is not how lors stores them.
STORAGE = ("compression_config", "quantization_config")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the model in `directory`: ``model.safetensors``, otherwise those that the index names.

    Others beside them (``model.fp16.safetensors``, shards of an earlier save, pickles) are not part of the model.

    Raises:
        FilesError: there is none, the index is damaged or names a file that is missing, or transformers would load
            something else.

    """
    if (directory / ADAPTER).is_file() and (directory / "config.json").is_file():
        reason = f"holds a model and an adapter ({ADAPTER}): transformers applies the adapter when it loads the model"
        raise FilesError(directory, reason, "move the adapter's files to a directory of their own, or merge it first")
    if named := _config(directory).get("transformers_weights"):
        remedy = f"rename it to {SINGLE} (an index to {INDEX}) and delete transformers_weights from config.json"
        raise FilesError(directory, f"has weights in {named}, because config.json says so", remedy)
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        for name in _named(directory):
            if not (directory / name).is_file():
                reason, remedy = f"lacks {name}, which {INDEX} names", "copy that file again from its source"
                raise FilesError(directory, reason, remedy)
        return [directory / name for name in _named(directory)]
    there = sorted(path.name for path in directory.glob("*") if path.suffix.lower() == ".safetensors")
    if not there:
        pickled = "convert the weights to safetensors first; pickled weights (*.bin, *.pt) are never loaded"
        raise FilesError(directory, "has no *.safetensors file", pickled)
    reason = f"has {there[0]}, but neither {SINGLE} nor {INDEX}, without which transformers finds no weights"
    if there[0].startswith("consolidated"):
        remedy = "these are weights in the form of the model's makers: fetch the files in Hugging Face's form"
    elif variant := next((path.name.split(".")[-2] for path in directory.glob(f"{INDEX[:-5]}.*.json")), None):
        load = f"AutoModelForCausalLM.from_pretrained('{directory}', variant='{variant}')"
        remedy = f"it is a variant: save it as the model, {load}.save_pretrained('NEW_DIRECTORY')"
    elif len(there) == 1:
        remedy = f"if it is the whole model, rename it to {SINGLE}"
    else:
        remedy = f"fetch {INDEX} of the same model, or rename the one file that is the whole model to {SINGLE}"
    raise FilesError(directory, reason, remedy)


def has_weights(directory: Path) -> bool:
    """Whether there are weights at all, so that their absence is not for `weight_files` to refuse."""
    return (directory / INDEX).is_file() or any(path.suffix.lower() == ".safetensors" for path in directory.glob("*"))


def names_of_weights(directory: Path) -> list[str]:
    """The names that the weights of a model may have, whose index, if it has one, is in `directory` already.

    Raises:
        FilesError: the index is damaged.

    """
    return [SINGLE, *(_named(directory) if (directory / INDEX).is_file() else [])]


def others(directory: Path) -> list[str]:
    """The names of safetensors files that are not part of the model; errors as in `weight_files`."""
    return sorted({path.name for path in directory.glob("*.safetensors")} - {p.name for p in weight_files(directory)})


def _named(directory: Path) -> list[str]:
    """The files that the index names."""
    try:
        content = json.loads((directory / INDEX).read_text(), object_pairs_hook=each_key_once("it names {} twice"))
        names = {str(Path(name)) for name in content["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FilesError(directory, f"has a damaged {INDEX}: {error}", "copy it again from its source") from None
    if elsewhere := sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors")):
        remedy = "name safetensors files that lie beside the index"
        raise FilesError(directory, f"has an {INDEX} that names {elsewhere[0]}", remedy)
    return sorted(names)


def _config(directory: Path) -> dict[str, Any]:
    """What config.json holds; nothing where it cannot be read, which is for those to say who need it."""
    try:
        return read_object(directory / "config.json")
    except (OSError, ValueError):
        return {}


def files(directory: Path) -> dict[str, Path]:
    """The files of a directory by their names, those in `FOLDERS` included; no hidden ones.

    Raises:
        FilesError: a link leads out of the directory, or something is neither a file nor a folder. Weights may be
            links: what is read of them is tensors, and what is written is new files.

    """
    found = [*directory.glob("*"), *(path for folder in FOLDERS for path in (directory / folder).glob("**/*"))]
    named = {path.relative_to(directory).as_posix(): path for path in found}
    named = {name: named[name] for name in sorted(named) if not name.startswith(".") and "__pycache__" not in name}
    links.check(directory, (path for path in named.values() if path.suffix != WEIGHTS))
    return {name: path for name, path in named.items() if path.is_file()}


def as_stored(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what it said about the form of the weights, which lors writes as plain floats."""
    return {key: value for key, value in config.items() if key not in STORAGE}

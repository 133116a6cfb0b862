"""A head that shares its weight with the embeddings gets one of its own where an adapter has changed the head."""

import json
import math
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel

from lors_cli.artifacts import files, model_files, tensors
from lors_cli.models import linears
from lors_cli.models.weights import Weights


def tensors_to_copy(weights: Weights, skeleton: PreTrainedModel, modules: Collection[str]) -> dict[str, str] | None:
    """Which tensor in the files is to be written under which other name too, if `modules` change a tied head.

    Returns:
        None where nothing has to be untied; an empty mapping where the files hold the head's weight already.

    """
    heads = linears.head(skeleton)
    if not (heads.keys() & set(modules) and skeleton.config.get_text_config().tie_word_embeddings):
        return None
    (head,) = (f"{name}.weight" for name in heads)
    embeddings = skeleton.get_input_embeddings()
    (shared,) = (f"{name}.weight" for name, module in skeleton.named_modules() if module is embeddings)
    there = {name: stored for stored, name in weights.by_file.items() if name in (head, shared)}
    if head in there:  # whichever the files lack is the one to add
        return {} if shared in there else {there[head]: shared}
    return {there[shared]: head}


def record(directory: Path, copied: dict[str, str]) -> None:
    """Say in ``config.json``, and in the index if there is one, that the head has a weight of its own."""
    config = json.loads((directory / "config.json").read_text())
    files.write_json(directory / "config.json", {**config, "tie_word_embeddings": False})
    path = directory / model_files.INDEX
    if not path.is_file():
        return
    index = json.loads(path.read_text())
    layout = tensors.TensorFiles(directory).layout
    for shared, head in copied.items():
        index["weight_map"][head] = index["weight_map"][shared]
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    files.write_json(path, index)

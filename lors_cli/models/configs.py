"""The config of a model directory, without what it says about the form of weights that are plain all the same."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lors_cli.artifacts.model_files import STORAGE
from lors_cli.errors import RequestError, request_error

# What compressed-tensors may say where it has not quantised. Which form the zeros have, the files show.
SPARSE_ONLY = {
    "quant_method": ("compressed-tensors", "sparseml"),
    "format": ("dense", "sparse-bitmask", "sparse-24-bitmask"),
    "sparsity_config": None,
    "version": None,
    "quantization_status": None,
    "global_compression_ratio": None,
    "ignore": None,
}


def of(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The config of the model in `directory`, as transformers reads it.

    Raises:
        RequestError: it says that the weights are quantised.
        Exception: of many types, where transformers does not know the architecture or a value does not fit its key.

    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key in STORAGE:
            section = getattr(part, key, None)
            if section and not is_sparsity_only(section):
                raise _quantised(directory, key, section)
            if hasattr(part, key):
                delattr(part, key)
    return config


def is_sparsity_only(section: Any) -> bool:
    """Whether a section on the form of the weights names their zeros and nothing that changes numbers."""
    if not isinstance(section, dict) or not section.get("sparsity_config"):
        return False
    known = (SPARSE_ONLY.get(key, ()) for key in section)
    return all(not value or one is None or value in one for value, one in zip(section.values(), known, strict=True))


def _quantised(directory: Path, key: str, section: Any) -> RequestError:
    method = section.get("quant_method") if isinstance(section, dict) else None
    got = f"{key} in {directory / 'config.json'}{f' ({method})' if method else ''}"
    return request_error("model", "a model whose weights are plain floats", got, "use the model before quantisation")

"""The config of a model directory, without what it says about the form of weights that are plain all the same."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from lors_cli.artifacts import quantized_files
from lors_cli.artifacts.model_files import STORAGE
from lors_cli.errors import RequestError, first_line, request_error
from lors_cli.models import remote_code, sizes

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
# Keys on which it depends what a model takes and gives, with the values of causal language models.
USE = {"return_dict": True, "is_encoder_decoder": False, "add_cross_attention": False}


def of(directory: Path, *, trust_remote_code: bool = False, quantized: bool = False) -> Any:
    """The config of the model in `directory`, as transformers reads it, without what it says of the form of weights.

    Args:
        directory: of a model.
        trust_remote_code: whether the code that it brings may run.
        quantized: whether the weights may be quantised in the form of `quantized_files`.

    Raises:
        RequestError: it says that the weights are quantised, or names code that may not run.
        Exception: of many types, where transformers does not know the architecture or a value does not fit its key.

    """
    sizes.check(remote_code.check_config(directory, trust_remote_code=trust_remote_code), directory)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key in STORAGE:
            section = getattr(part, key, None)
            read = quantized and part is config and key == quantized_files.KEY
            if section and not is_sparsity_only(section) and not (read and quantized_files.of_config({key: section})):
                raise _quantised(directory, key, section, quantized=read)
            if hasattr(part, key):
                delattr(part, key)
    sizes.check_heads(config.get_text_config(), directory)
    return config


def check_use(config: Any, directory: Path) -> None:
    """Refuse the config of a built model if it asks for another kind of output than lors and lm-eval use.

    Raises:
        RequestError: it does, or the settings for generation beside it cannot be read.

    """
    for key, usual in USE.items():
        if (value := getattr(config, key, usual)) is not usual:
            where, file = f"model: {key}", directory / "config.json"
            raise request_error(where, str(usual).lower(), repr(value), "delete the key", file)
    file = directory / "generation_config.json"
    if file.is_file():
        try:
            GenerationConfig.from_pretrained(directory)
        except Exception as error:  # of many types: whatever a wrong value leads to
            wanted = "settings for generation that transformers reads"
            remedy = f"{remote_code.AGAIN}, or delete it"
            raise request_error("model", wanted, first_line(error), remedy, file) from None


def is_sparsity_only(section: Any) -> bool:
    """Whether a section on the form of the weights names their zeros and nothing that changes numbers."""
    if not isinstance(section, dict) or not section.get("sparsity_config"):
        return False
    known = (SPARSE_ONLY.get(key, ()) for key in section)
    return all(not value or one is None or value in one for value, one in zip(section.values(), known, strict=True))


def _quantised(directory: Path, key: str, section: Any, *, quantized: bool) -> RequestError:
    method = section.get("quant_method") if isinstance(section, dict) else None
    got = f"{key} in {directory / 'config.json'}{f' ({method})' if method else ''}"
    expected = "a model whose weights are plain floats"
    if quantized:
        expected += ", or whole numbers as `lors quantize` writes them"
        try:
            quantized_files.grid_in(section)
        except ValueError as error:
            got += f": it should have {error}"
    return request_error("model", expected, got, quantized_files.DENSE)

"""Models and tokenizers from a local directory; the skeleton of a model without its weights."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lors_cli.artifacts import companions, inputs, model_files, packed_model, quantized_files, tensors
from lors_cli.artifacts.files import read_object
from lors_cli.data import once
from lors_cli.errors import LorsError, first_line, request_error
from lors_cli.models import configs, remote_code, sentencepiece_model, sizes, source, structure
from lors_cli.models.linears import NO_REMEDY
from lors_cli.models.undrawn import Undrawn
from lors_cli.models.weights import FLOATS, keep_wider, open_weights

log = logging.getLogger(__name__)

REMEDY = "correct config.json; code from a hub repository runs only with trust_remote_code: true"
TOKENIZER_FILES = ("tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "vocab")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@inputs.reads_model(weights=False)
def skeleton(
    directory: Path, dtype: str = "auto", *, trust_remote_code: bool = False, quantized: bool = False
) -> PreTrainedModel:
    """The model of `directory` without its weights: parameters on the meta device, what no file holds is real.

    Args:
        directory: a model directory.
        dtype: "auto" (as stored) or a key of `DTYPES`.
        trust_remote_code: whether code that the directory brings may run.
        quantized: whether its weights may be quantised as `lors quantize` does it; the skeleton is that of the numbers.

    Raises:
        RequestError: transformers does not know the architecture, or the weights are quantised otherwise.

    """
    try:
        config = configs.of(directory, trust_remote_code=trust_remote_code, quantized=quantized)
        stored_as = DTYPES.get(dtype) or config.get_text_config().dtype or _stored_dtype(directory)
        if stored_as not in FLOATS:
            raise ValueError(f"dtype {tensors.dtype_name(stored_as)}, which is none of {', '.join(DTYPES)}")
        build = partial(AutoModelForCausalLM.from_config, config, dtype=stored_as, trust_remote_code=trust_remote_code)
        sizes.check_buffers(config.get_text_config(), directory, build)
        with init_empty_weights(include_buffers=False), Undrawn():
            model: PreTrainedModel = build()
            _compute_buffers(model)
        configs.check_use(model.config, directory)
        model.tie_weights()
        keep_wider(model, stored_as)
        if smaller := structure.read(directory):
            structure.shrink(model, smaller)
    except LorsError:
        raise
    except Exception as error:  # whatever a wrong value in the config leads to
        got, remedy = " ".join(str(error).strip().partition("\n\n")[0].split()) or type(error).__name__, REMEDY
        if "for this kind of AutoModel" in got:
            got, remedy = f"{type(config).__name__}, which AutoModelForCausalLM does not load", NO_REMEDY
        expected = "a causal language model that transformers can build"
        raise request_error("model", expected, got, remedy, file=directory / "config.json") from None
    return model.eval()


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute anew what no file holds, in float32 as `from_pretrained` does; `from_config` has done so in the dtype."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            module._is_hf_initialized = False
    model.initialize_weights()


def _stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the first floating tensor in the files of `directory`, float32 where they are not there yet."""
    if not model_files.has_weights(directory):
        return torch.float32
    dtypes = (dtype for _, dtype in packed_model.open_tensors(directory).layout.values() if dtype.is_floating_point)
    return next(dtypes, torch.float32)


def layout(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that a file of `model` holds, in its order; of tied ones the first."""
    seen: set[int] = set()
    tensors_by_name = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors_by_name[name] = tensor.detach().to("meta")
    return tensors_by_name


@inputs.reads_model(weights=True)
def load_model(
    directory: Path, dtype: str, device: torch.device, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of `directory` with its weights, in eval mode; quantised weights as the numbers that they stand for.

    Args:
        directory: a model directory.
        dtype: "auto" (as stored) or a key of `DTYPES`.
        device: where to put it.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        RequestError: it is not a model that transformers can build; or as in `open_weights`.
        LorsError: transformers found its tensors to be others than the model's.

    """
    if packed_model.is_packed(directory):
        source.require_model(directory, "model")
    if structure.read(directory) or quantized_files.grid_of(directory):
        return _load_by_name(directory, dtype, device, trust_remote_code=trust_remote_code)
    open_weights(directory, skeleton(directory, dtype, trust_remote_code=trust_remote_code), "model", converts=True)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=configs.of(directory, trust_remote_code=trust_remote_code),
            dtype=DTYPES.get(dtype, "auto"),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise LorsError(f"{directory} could not be loaded: {error}") from error
    # transformers fills what it does not find with random numbers and goes on
    wrong = [*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"]), *info["unexpected_keys"]]
    if wrong:
        raise LorsError(
            f"{directory} lacks {len(wrong)} tensors, or has them in another shape or too many, among them"
            f" {sorted(wrong)[0]}"
        )
    model.eval()
    return tensors.unmapped(model.to(device))


def _load_by_name(directory: Path, dtype: str, device: torch.device, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model that is smaller than its config says, whose shapes transformers would not accept, or a quantised one."""
    model = skeleton(directory, dtype, trust_remote_code=trust_remote_code, quantized=True)
    checkpoint = open_weights(directory, model, "model")
    names = layout(model)
    content = {name: checkpoint.tensor(name).to(device, like.dtype) for name, like in names.items()}
    missing, _ = model.load_state_dict(content, strict=False, assign=True)
    model.tie_weights()
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    left = [name for name in missing if name in names]
    if left or any(parameter.is_meta for parameter in model.parameters()):
        raise LorsError(f"{directory} lacks {len(left)} tensors, among them {left[:1]}")
    return model.requires_grad_(True).to(device)


@inputs.reads_model(weights=False)
def load_tokenizer(
    directory: Path, model: PreTrainedModel | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of `directory`, checked to have no token that the (skeleton) `model`, if given, cannot embed.

    Raises:
        RequestError: it has none, or tokens beyond the rows of the embedding.

    """
    noted = remote_code.check_tokenizer(directory, trust_remote_code=trust_remote_code)
    try:
        read = partial(_usable_tokenizer, directory, trust_remote_code=trust_remote_code, **noted)
        tokenizer = once.read(("tokenizer", directory, trust_remote_code), read)
    except Exception as error:  # of many types, the tokenizers library's among them
        if sentencepiece_model.is_alone(directory) and not sentencepiece_model.is_readable():
            got = f"{directory}, whose tokenizer.model needs the library protobuf, which is not installed"
            raise request_error("model", "a tokenizer that can be read", got, "pip install protobuf") from None
        raise request_error(
            "model",
            "a directory with a tokenizer (tokenizer.json, or tokenizer.model)",
            f"{directory}: {first_line(error)}",
            "copy the tokenizer files of the original model into it",
        ) from None
    if sentencepiece_model.is_alone(directory) and sentencepiece_model.difference(directory, tokenizer):
        got = f"{directory}, where transformers reads tokenizer.model otherwise than SentencePiece does"
        remedy = "copy tokenizer_config.json, or tokenizer.json, of the original model into it"
        raise request_error("model", "a tokenizer that is read as it was made", got, remedy)
    if model is not None:
        _check_tokens(tokenizer, model, directory)
    # One text of a whole corpus is tokenised at once, and cut into windows afterwards: its length deserves no warning.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def _usable_tokenizer(directory: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers reads it, tried on a text, because some can be built and fail at the first one.

    Raises:
        Exception: of many types.

    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **options)
    tokenizer("A text.")
    template: Any = tokenizer.chat_template
    if not all(
        isinstance(one, str | None) for one in (template.values() if isinstance(template, dict) else [template])
    ):
        raise TypeError("its chat template is not a text")
    return tokenizer


def _check_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, directory: Path) -> None:
    rows = model.get_input_embeddings().num_embeddings
    # A text model may keep the tokenizer of a family that also sees: Gemma 3 1B has no row for its image token.
    named = tokenizer.special_tokens_map.items()
    of_others = {text for name, text in named if name not in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES}
    beyond = {i: text for text, i in tokenizer.get_vocab().items() if i >= rows and text not in of_others}
    # Nor does a token of no file count: transformers' classes add their family's own to a tokenizer without it.
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    beyond = {i: text for i, text in beyond.items() if text in used or _is_in_files(text, directory)}
    if beyond:
        first = min(beyond)
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise request_error(
            "model",
            f"a tokenizer whose tokens all have one of the {rows} rows of the embedding",
            f"the token {beyond[first]!r} with the number {first}{more}",
            f"model.resize_token_embeddings({max(beyond) + 1}) in transformers and model.save_pretrained(...), or take"
            " the tokens out of the tokenizer",
            file=directory,
        )


def _is_in_files(token: str, directory: Path) -> bool:
    forms = {token.encode(), json.dumps(token)[1:-1].encode(), json.dumps(token, ensure_ascii=False)[1:-1].encode()}
    files = (path.read_bytes() for path in directory.glob("*") if path.stem in TOKENIZER_FILES)
    return any(form in content for content in files for form in forms)


def stop_tokens(directory: Path) -> frozenset[int]:
    """The tokens that end generation, as generation_config.json in `directory` says, else config.json.

    Raises:
        RequestError: the file is not JSON.

    """
    tokens: Any = None
    for file in (directory / "generation_config.json", directory / "config.json"):
        if tokens is None and file.is_file():
            try:
                tokens = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            except ValueError as error:
                raise request_error("model", "JSON", f"{file}: {error}", "copy the file from the model again") from None
    listed = tokens if isinstance(tokens, list) else [tokens]
    return frozenset(token for token in listed if isinstance(token, int) and token >= 0)


def copy_config(
    source: Path,
    target: Path,
    model: PreTrainedModel,
    *,
    trust_remote_code: bool = False,
    quantization: dict[str, Any] | None = None,
    sizes: dict[str, int] | None = None,
) -> None:
    """Copy config.json with the form in which the weights of the (skeleton) `model` are now stored.

    Of quantised weights `quantized_files.section` says the form, as `quantization`; `sizes` are those that changed.
    """
    public = companions.cleaned(read_object(source / "config.json"), trust_remote_code=trust_remote_code)
    content = model_files.as_stored(public)
    content.pop("torch_dtype", None)  # the older name
    content["dtype"] = tensors.dtype_name(model.dtype)
    if getattr(model, "lors_untied", False):
        content["tie_word_embeddings"] = False
    if quantization:
        content[quantized_files.KEY] = quantization
    content |= sizes or {}
    (target / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def positions(model: PreTrainedModel) -> int | None:
    """How many positions a (skeleton) model was made for; None if its config does not say so."""
    most: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most


def warn_of_length(model: PreTrainedModel, length: int, key: str) -> None:
    """Say so where windows are longer than what the (skeleton) model was made for."""
    most = positions(model)
    if most and length > most:
        log.warning("%s is %d, longer than the model's %d positions: expect poor results", key, length, most)


def weight_bytes(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of all parameters of a (skeleton) model in `dtype`."""
    stored: Any = getattr(model.config, "dtype", None)
    size = (DTYPES.get(dtype) or (stored if isinstance(stored, torch.dtype) else torch.float32)).itemsize
    return int(size * sum(parameter.numel() for parameter in model.parameters()))

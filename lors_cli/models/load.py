"""Models and tokenizers from a local directory; the skeleton of a model without its weights."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lors_cli import processes
from lors_cli.artifacts import tensors
from lors_cli.errors import LorsError, request_error
from lors_cli.models import structure

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def skeleton(directory: Path, dtype: str = "auto", *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `directory` without its weights: parameters on the meta device, what no file holds is real.

    Raises:
        RequestError: transformers does not know the architecture, or the weights are quantised.

    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        stored_as = DTYPES.get(dtype) or config.get_text_config().dtype or _stored_dtype(directory)
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=stored_as, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        if smaller := structure.read(directory):
            structure.shrink(model, smaller)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise request_error(
            "model",
            "a causal language model that transformers can build",
            str(error).strip().splitlines()[0],
            "check config.json; code from a hub repository runs only with trust_remote_code: true",
            file=directory / "config.json",
        ) from None
    if getattr(config, "quantization_config", None):
        got = f"quantization_config in {directory / 'config.json'}"
        raise request_error("model", "a model whose weights are plain floats", got, "use the model before quantisation")
    return model.eval()


def _stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the first floating tensor in the files of `directory`, float32 where they are not there yet."""
    if not any(directory.glob("*.safetensors")):
        return torch.float32
    dtypes = (dtype for _, dtype in tensors.TensorFiles(directory).layout.values() if dtype.is_floating_point)
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


def open_weights(directory: Path, model: PreTrainedModel, key: str) -> tensors.TensorFiles:
    """The weights of `model` in `directory`, with every name and shape checked.

    Raises:
        RequestError: a file is missing or damaged, or a tensor is missing, stands in two files or has another shape.

    """
    wanted, remedy = "safetensors files that hold every tensor of the model once", "copy the model again"
    try:
        checkpoint = tensors.TensorFiles(directory)
    except LorsError as error:
        raise request_error(key, wanted, error, remedy, file=directory) from None
    for name, tensor in layout(model).items():
        if name not in checkpoint.layout:
            got = f"no tensor {name} among {len(checkpoint.layout)}"
            remedy = "copy the model again; if its tensors are named otherwise, save it once with save_pretrained"
            raise request_error(key, wanted, got, remedy, file=directory)
        shape, dtype = checkpoint.layout[name]
        if shape != tuple(tensor.shape) or not dtype.is_floating_point:
            got = f"{name} of shape {shape} and dtype {tensors.dtype_name(dtype)}"
            raise request_error(key, f"{name} of shape {tuple(tensor.shape)}", got, remedy, file=directory)
    return checkpoint


def load_model(
    directory: Path, dtype: str, device: torch.device, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of `directory` with its weights, in eval mode.

    Args:
        directory: a model directory.
        dtype: "auto" (as stored) or a key of `DTYPES`.
        device: where to put it.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        LorsError: a weight file is damaged, or a tensor is missing or has another shape.

    """
    tensors.shards(directory)
    if structure.read(directory):
        return _load_smaller(directory, dtype, device, trust_remote_code=trust_remote_code)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES.get(dtype, "auto"),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise LorsError(f"{directory} could not be loaded: {error}") from error
    # transformers fills what it does not find with random numbers and goes on
    wrong = [*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])]
    if wrong:
        raise LorsError(
            f"{directory} lacks {len(wrong)} tensors or has them in another shape, among them {sorted(wrong)[0]}"
        )
    model.eval()
    loaded: PreTrainedModel = model.to(device)
    return loaded


def _load_smaller(directory: Path, dtype: str, device: torch.device, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model that is smaller than its config says, whose shapes transformers would not accept."""
    model = skeleton(directory, dtype, trust_remote_code=trust_remote_code)
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
    loaded: PreTrainedModel = model.requires_grad_(True).to(device)
    return loaded


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `directory`.

    Raises:
        RequestError: it has none.

    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code
        )
    except (ValueError, OSError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise request_error(
            "model",
            "a directory with a tokenizer (tokenizer.json, or tokenizer.model)",
            f"{directory}: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            "copy the tokenizer files of the original model into it",
        ) from None
    # One text of a whole corpus is tokenised at once, and cut into windows afterwards: its length deserves no warning.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def copy_config(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Copy config.json with the dtype in which the weights are now stored."""
    content = json.loads((source / "config.json").read_text())
    content.pop("torch_dtype", None)  # the older name
    content["dtype"] = tensors.dtype_name(dtype)
    (target / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def head_width(model: PreTrainedModel) -> int:
    """Channels of an attention head."""
    config = model.config.get_text_config()
    # not getattr, which fails where the width differs from block to block
    width: int = vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads
    return width


def pick_device(name: str) -> torch.device:
    """The device that `name` means; "auto" is CUDA if there is a GPU, otherwise MPS, otherwise the CPU.

    Of several processes on a machine each takes the GPU of its number.

    Raises:
        RequestError: there is no such device, or all processes would take the same.

    """
    number = processes.local_rank()
    if ":" in name and processes.count() > 1:
        remedy = "use device: cuda, and CUDA_VISIBLE_DEVICES to choose among them"
        raise request_error("device", "auto, cuda or cpu where several processes share the work", repr(name), remedy)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", number)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"{name}:{number}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        got = f"{name!r}: {str(error).splitlines()[0]}"
        raise request_error(
            "device", "auto, or a device that is present here: cpu, cuda or cuda:N", got, "use device: auto"
        ) from None
    return device


def check_dtype(name: str, device: torch.device, key: str) -> None:
    """Refuse bfloat16 on a GPU that does not compute in it.

    Raises:
        RequestError: it does not; `key` is where the dtype was asked for.

    """
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        got = f"bfloat16 on {torch.cuda.get_device_name(device)}, which does not have it"
        raise request_error(key, "a dtype that the device computes in", got, f"set {key} to float32")


def warn_of_length(model: PreTrainedModel, length: int, key: str) -> None:
    """Say so where windows are longer than what the (skeleton) model was made for."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most and length > most:
        log.warning("%s is %d, longer than the model's %d positions: expect poor results", key, length, most)


def weight_bytes(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of all parameters of a (skeleton) model in `dtype`."""
    stored: Any = getattr(model.config, "dtype", None)
    size: int = (DTYPES.get(dtype) or (stored if isinstance(stored, torch.dtype) else torch.float32)).itemsize
    count: int = sum(parameter.numel() for parameter in model.parameters())
    return count * size

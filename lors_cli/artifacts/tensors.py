"""Tensors of a model directory, read one at a time from its safetensors files; shards written with the same layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lors_cli.artifacts import files, inputs, publish
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.model_files import weight_files

Model = TypeVar("Model", bound=nn.Module)
PACKED_SUFFIX = ".packed.safetensors"  # `packed_file` reads such files


# The names of dtypes in a safetensors header.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def shards(directory: Path) -> list[Path]:
    """The files of the model in `directory`, as `model_files.weight_files` has them, each checked to be whole.

    Raises:
        LorsError: there is none, one that the index names is missing, or one is truncated or damaged.

    """
    paths = weight_files(directory)
    for path in paths:
        with open_shard(path):
            pass
    return paths


def open_shard(path: Path) -> Any:
    """``safetensors.safe_open`` with a clear error for a file that is truncated or not safetensors."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        size = f"truncated or damaged ({path.stat().st_size} bytes)" if path.is_file() else "gone"
        raise FilesError(path, f"is {size}: {error}", "copy it again from its source") from None


def read(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of `directory` by name, one in memory at a time."""
    checkpoint = TensorFiles(directory)
    for name in checkpoint.layout:
        yield name, checkpoint.tensor(name)


def of_bytes(content: np.ndarray[Any, Any], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor in the memory of these bytes, uint8 (bytes,). It may be empty, as what is kept of a matrix of zeros.

    Raises:
        RuntimeError: there are more bytes than it has, or fewer.

    """
    # numpy gives empty arrays a stride of 0, which torch does not view in another dtype
    flat = torch.from_numpy(content).view(dtype) if len(content) else torch.empty(0, dtype=dtype)
    return flat.view(tuple(shape))


class TensorFiles:
    """The tensors of a directory's safetensors files, or of one such file, each read when it is asked for.

    `layout` maps each name to its shape and dtype, known from the headers of the files, which are `shards`.

    Raises:
        LorsError: a file is missing or damaged, or a tensor stands in two of them.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._file: dict[str, Path] = {}
        self.shards = [path] if path.is_file() else shards(path)
        for file in self.shards:
            with open_shard(file) as shard:
                for name in shard.keys():  # noqa: SIM118 - safe_open is not a mapping
                    if name in self.layout:
                        reason = f"has the tensor {name} in both {self._file[name].name} and {file.name}"
                        raise FilesError(path, reason, "keep the files of one save only")
                    part = shard.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        reason = f"has the tensor {name} in {part.get_dtype()}, which stands for other numbers"
                        raise FilesError(file, reason, "use the model before quantisation")
                    self.layout[name] = tuple(part.get_shape()), DTYPES[part.get_dtype()]
                    self._file[name] = file

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own: what is written to the file later does not reach it.

        Copied by numpy: in a thread a torch operation would start a second team of OpenMP threads, which slows the
        first one down.

        Raises:
            LorsError: the file is damaged, or, of a stage's input, it is not what it was when the stage began.

        """
        file = self._file[name]

        def copied() -> Tensor:
            with open_shard(file) as shard:
                mapped: Tensor = shard.get_tensor(name)
            content = mapped.reshape(-1).view(torch.uint8).numpy().copy()
            return of_bytes(content, mapped.dtype, mapped.shape)

        return inputs.steadily([file], copied, learns=False)


def unmapped(model: Model) -> Model:
    """The same model; what it has on the CPU is in memory of its own, and not a file that may be written to later."""
    for tensor in (tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.device.type == "cpu"):
        tensor.data = tensor.data.clone()
    return model


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file in the form that transformers reads.

    Raises:
        LorsError: the write failed (a full disk, say).

    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        publish.use_default_mode(path)  # the library writes for the owner alone
    except (safetensors.SafetensorError, OSError) as error:
        raise files.write_failed(path, error) from None


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` as "bfloat16"."""
    return str(dtype).removeprefix("torch.")

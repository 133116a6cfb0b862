"""Masks that were made elsewhere: a safetensors file of them, or the zeros of a sparse model."""

from pathlib import Path

from torch import Tensor

from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.errors import LorsError, RequestError, request_error
from lors_cli.models import load
from lors_cli.models.weights import Weights


class Masks:
    """The masks in `path`, by the linears' names in the model: called like their weight, or like the linear itself.

    A sparse model's files may name a weight otherwise than its modules do (`Weights`).

    Attributes:
        path: the file or the directory.
        count: how many tensors are in it.

    Raises:
        RequestError: it is neither a file of masks nor a sparse model, or damaged.

    """

    def __init__(self, path: Path, *, trust_remote_code: bool = False) -> None:
        expected = "a .safetensors file of masks, or the directory of a sparse model"
        if not path.exists():
            raise request_error("prune.mask", expected, f"{path}, which does not exist", "correct the path")
        try:
            self.path, self._files = path, TensorFiles(path)
            names = {stored: stored for stored in self._files.layout}
            if (path / "config.json").is_file():
                names |= Weights(path, load.skeleton(path, trust_remote_code=trust_remote_code)).by_file
        except RequestError as error:
            got = error.problems[0].got
            raise request_error("prune.mask", expected, f"{path}: {got}", "name another one") from None
        except LorsError as error:
            raise request_error("prune.mask", expected, error, "name another one") from None
        self.count = len(names)
        self._stored = {name: stored for stored, name in names.items()}

    def shape(self, linear: str) -> tuple[int, ...] | None:
        """The shape of the mask of `linear`; None if there is none."""
        stored = self._name(linear)
        return self._files.layout[stored][0] if stored else None

    def tensor(self, linear: str) -> Tensor:
        """The mask of `linear`, in memory of its own: any dtype, what is kept is true or not zero."""
        return self._files.tensor(self._name(linear) or linear)

    def _name(self, linear: str) -> str | None:
        return self._stored.get(linear) or self._stored.get(f"{linear}.weight")

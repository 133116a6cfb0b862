"""A quantised sparse model, and configs that train on its codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import quantized


@pytest.fixture(scope="session")
def coded(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2:4 model on an asymmetric grid of 4 bits. Not to be written to."""
    return quantized.write(pruned, tmp_path_factory.mktemp("coded") / "model")


@pytest.fixture
def on_codes(write_config: Callable[..., Path], coded: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        return write_config(**{"train__input": str(coded), "train__base": "int4", **changes})

    return write

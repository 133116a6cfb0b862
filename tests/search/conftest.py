from collections.abc import Callable
from pathlib import Path

import pytest

WriteConfig = Callable[..., Path]

HELD_OUT = {
    "train__eval_dataset": {"path": "python-topics", "split": "test", "limit": 1},
    "train__max_steps": 2,
    "train__init": "random",
}


@pytest.fixture
def config(write_config: WriteConfig) -> Path:
    return write_config(**HELD_OUT)

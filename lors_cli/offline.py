"""Keep the libraries behind lors from using a network, and say where they keep what they fetched."""

import os
import sys
from pathlib import Path

VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE")
# Modules that read those once, when they are imported, and what they then keep.
CONSTANTS = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    "evaluate.config": ("HF_EVALUATE_OFFLINE",),
}


def switch_on() -> None:
    """Keep this process, and those that it starts, from asking a network for models or data from now on."""
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for name, constants in CONSTANTS.items():
        if module := sys.modules.get(name):
            for constant in constants:
                setattr(module, constant, True)


def use_home(directory: Path) -> None:
    """Make `directory` the one where the hub's libraries keep what they fetch, before one of them is imported.

    Raises:
        RuntimeError: one is, and keeps the directory that it had then.

    """
    if loaded := sorted(CONSTANTS.keys() & sys.modules.keys()):
        raise RuntimeError(f"HF_HOME cannot be changed any more: {', '.join(loaded)}")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
        os.environ.pop(name, None)
    os.environ["HF_HOME"] = str(directory.absolute())


def is_on() -> bool:
    """Whether the network is switched off, here or by the environment."""
    return any(os.environ.get(name, "").upper() in {"1", "TRUE", "YES", "ON"} for name in VARIABLES)

"""No network: what the libraries behind lors must be told so that none of them asks one."""

import os
import sys

VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE")
# Modules that read those once, when they are imported, and what they then keep.
CONSTANTS = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    "evaluate.config": ("HF_EVALUATE_OFFLINE",),
}


def switch_on() -> None:
    """From now on nothing in this process, or in those that it starts, asks a network for models or data."""
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for name, constants in CONSTANTS.items():
        if module := sys.modules.get(name):
            for constant in constants:
                setattr(module, constant, True)


def is_on() -> bool:
    """Whether that was asked for, here or by the environment."""
    return any(os.environ.get(name, "").upper() in {"1", "TRUE", "YES", "ON"} for name in VARIABLES)

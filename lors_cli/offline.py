"""Keep the libraries behind lors from using a network."""

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
    """Keep this process, and those that it starts, from asking a network for models or data from now on."""
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for name, constants in CONSTANTS.items():
        if module := sys.modules.get(name):
            for constant in constants:
                setattr(module, constant, True)


def is_on() -> bool:
    """Whether the network is switched off, here or by the environment."""
    return any(os.environ.get(name, "").upper() in {"1", "TRUE", "YES", "ON"} for name in VARIABLES)

"""What can change a number besides the request: versions of packages, and the hardware."""

import platform
from importlib import metadata
from typing import Any

from lors_cli import __version__


def versions() -> dict[str, str]:
    """The versions of everything that can change a number."""
    packages = ("torch", "transformers", "accelerate", "datasets", "lm_eval", "safetensors", "tokenizers", "numpy")
    versions = {"lors_cli": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """What the work ran on."""
    import torch

    facts: dict[str, Any] = {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = torch.cuda.device_count()
    return facts

"""``lors.json``: how a directory came to be. Written last, so a directory that has one is complete."""

import json
import os
import platform
import resource
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from lors_cli import __version__
from lors_cli.artifacts import digest
from lors_cli.errors import LorsError

NAME = "lors.json"


def read(directory: Path) -> dict[str, Any] | None:
    """The manifest of `directory`, or None where there is none.

    Raises:
        LorsError: it cannot be read as JSON.

    """
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise LorsError(f"{path} is damaged ({error}); make the directory again with --force") from None
    return content


def input_digest(directory: Path, name: str) -> str | None:
    """The digest of the input `name` that `directory` was made from; None where that is not recorded."""
    found: str | None = (read(directory) or {}).get("request", {}).get("inputs", {}).get(name)
    return found


def original_digest(pruned: Path) -> str | None:
    """The digest of the model that a pruned one, aligned or not, was made from; None where that is not recorded."""
    found: str | None = (read(pruned) or {}).get("original") or input_digest(pruned, "model")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all.

    Raises:
        LorsError: the write failed.

    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all; errors as in `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        LorsError: the write failed.

    """
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        from lors_cli.artifacts.tensors import write_failed  # torch takes seconds to import

        raise write_failed(path, error) from None


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their dotted keys."""
    if isinstance(value, dict) and value:
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}
    return {prefix: value}


def by_place(modules: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The facts about linears, those of the same place in their blocks together."""
    places: dict[str, list[dict[str, Any]]] = {}
    for name, facts in modules.items():
        places.setdefault(name.rsplit(".", 1)[-1], []).append(facts)
    return places


def versions() -> dict[str, str]:
    """The versions of everything that can change a number."""
    packages = ("torch", "transformers", "accelerate", "datasets", "lm_eval", "safetensors", "tokenizers", "numpy")
    found = {"lors_cli": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What the work ran on."""
    import torch

    facts: dict[str, Any] = {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = torch.cuda.device_count()
    return facts


def peak_memory() -> dict[str, int]:
    """Peak bytes since `forget_peak_memory`: of this process on the host, and of CUDA allocations."""
    import torch

    peaks = {"host_bytes": _host_peak()}
    if torch.cuda.is_available():
        peaks["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peaks


def _host_peak() -> int:
    """The system's own figure; ru_maxrss also holds that of the process that started this one."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory() -> None:
    """Let the peaks begin anew; where the system does not allow that, the host's is over the whole life."""
    import torch

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def build(
    directory: Path, stage: str, request: dict[str, Any], seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a finished `directory`."""
    return {
        "stage": stage,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "request": request,
        "digest": digest.of_directory(directory),
        **facts,
        "versions": versions(),
        "hardware": hardware(),
        "seconds": round(seconds, 2),
        "peak_memory": peak_memory(),
    }

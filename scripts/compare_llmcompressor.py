"""The parts of ``compare_llmcompressor.sh``, which sets the environment variables that `compare` reads.

compare [--json FILE] [--methods METHOD...]   the whole comparison; the other modes are its child processes
versions PACKAGE...                           versions of packages, imported once so that the disk is warm
windows MODEL TEXT OUT                        calibration windows, as lors cuts them
llmcompressor METHOD MODEL WINDOWS OUT        what is measured against ``lors prune`` or ``lors quantize``
measure TEXT OUT DENSE [LORS OTHER]...        perplexities; zeros, pattern and equal masks or codes of each pair

Seconds and memory are those of a whole process: imports, loading, pruning, saving and what a tool checks afterwards.
lors reads and tokenises its calibration text itself, llm-compressor is given the tokens; that lors took the same ones
is checked by their digest. Both take one window at a time and prune block by block on the states that the pruned blocks
before produce; Hessian damping (0.01) and block size (128) are the defaults of both.

gptq and gptq-act-order are of the dense model: int4, symmetric, groups of 64. In the stored order lors fits a group's
scale when its first column is reached, to what the weights are by then; llm-compressor fits all scales before. In the
order of the inputs' size (``act_order: true``, ``actorder: static``) both fit them before.
"""

import argparse
import gzip
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The process that measures imports nothing large: Linux counts the size at its fork to a child's peak memory.

PRUNING, QUANTIZING = ("wanda", "sparsegpt"), ("gptq", "gptq-act-order")
TOOLS = ("lors", "llm-compressor")
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
EQUAL = ("equal_mask", "equal_codes")  # what a row of results calls it, of pruning and of quantising
SAMPLES, LENGTH = 32, 512
PERPLEXITY_WINDOWS, PERPLEXITY_BATCH = 40, 4
PACKAGES = {
    "lors": ("lors_cli", "torch", "transformers", "datasets"),
    "llm-compressor": ("llmcompressor", "compressed_tensors", "torch", "transformers", "datasets"),
}


def compare(arguments: list[str]) -> None:
    """Run all commands in turn, measure their results, print the table and write the JSON file."""
    work = Path(os.environ["WORK"])
    parser = argparse.ArgumentParser(prog="compare_llmcompressor.sh")
    parser.add_argument("--json", type=Path, default=work / "compare_llmcompressor.json", help="file of all results")
    every = (*PRUNING, *QUANTIZING)
    parser.add_argument("--methods", nargs="+", choices=every, default=PRUNING, help="left out, those that prune")
    given = parser.parse_args(arguments)
    target, methods = given.json, given.methods
    repeats = int(os.environ["REPEATS"])
    model, calibration, text = (os.environ[name] for name in ("MODEL", "CALIBRATION", "TEXT"))
    work.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    python = {"lors": sys.executable, "llm-compressor": os.environ["LLMCOMPRESSOR_PYTHON"]}
    versions = {tool: json.loads(_child(python[tool], "versions", *PACKAGES[tool])) for tool in TOOLS}
    windows = work / "windows.json"
    _child(python["lors"], "windows", model, calibration, windows)
    runs = []
    for repeat in range(repeats):
        for turn, method in enumerate(methods):
            for tool in TOOLS if (repeat + turn) % 2 == 0 else TOOLS[::-1]:
                output = _output(work, tool, method)
                command = _command(tool, method, python[tool], model, calibration, windows, output)
                shutil.rmtree(output.parent, ignore_errors=True)
                print(f"{repeat + 1}/{repeats}: {method} with {tool}", file=sys.stderr)
                _child(python[tool], "versions", *PACKAGES[tool])  # so that the disk is warm for both
                figures = _measured(command, work / f"{output.parent.name}.log")
                runs.append({"method": method, "tool": tool, "repeat": repeat, **figures})
        for method in methods:
            _check_tokens(_output(work, "lors", method), windows)
    print("perplexities", file=sys.stderr)
    made = [_output(work, tool, method) for method in methods for tool in TOOLS]
    measured = work / "measured.json"
    _child(python["lors"], "measure", text, measured, model, *made)
    quality = json.loads(measured.read_text())
    facts = {
        "model": "smollm2-135m",
        "dtype": "float32",
        **({"sparsity": "2:4"} if set(methods) & set(PRUNING) else {}),
        **({"quantization": WEIGHTS} if set(methods) & set(QUANTIZING) else {}),
        "calibration": {"file": Path(calibration).name, "windows": SAMPLES, "length": LENGTH},
        "perplexity": {"file": Path(text).name, "windows": PERPLEXITY_WINDOWS, "length": LENGTH},
        "hardware": hardware(),
        "versions": versions,
        "runs": runs,
        "results": _results(methods, runs, quality),
    }
    target.write_text(json.dumps(facts, indent=2) + "\n")
    print(_table(facts["results"], versions))


def _output(work: Path, tool: str, method: str) -> Path:
    """The directory of the model that is made; its parent is all that the command writes."""
    return work / f"{tool}-{method}" / ("pruned" if method in PRUNING else "quantized")


def _command(
    tool: str, method: str, python: str, model: str, calibration: str, windows: Path, output: Path
) -> list[str]:
    """What is measured: it prunes or quantises `model` into `output`."""
    if tool == "llm-compressor":
        return [python, __file__, "llmcompressor", method, model, str(windows), str(output)]
    text = {"dataset": calibration, "samples": SAMPLES, "sequence_length": LENGTH, "sampling": "concat"}
    section: dict[str, Any] = {"method": method, "sparsity": "2:4", "calibration": text}
    stage = "prune"
    if method in QUANTIZING:
        stage, grid = (
            "quantize",
            {"bits": WEIGHTS["num_bits"], **{key: WEIGHTS[key] for key in ("group_size", "symmetric")}},
        )
        section = {"method": "gptq", **grid, "act_order": method == "gptq-act-order", "calibration": text}
    config = {"model": model, "output_dir": str(output.parent), "dtype": "float32", "device": "cpu", stage: section}
    file = output.parent.with_suffix(".yaml")
    file.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return [str(Path(python).with_name("lors")), stage, str(file)]


def _measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run `command` and return its wall seconds, processor seconds and peak resident bytes."""
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    shown = shlex.join(command).replace(str(Path.home()), "~").replace(f"{Path.cwd()}/", "")
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        sys.exit(f"exit status {process.returncode}: {shown}\n{tail}\n(all of it: {log})")
    return {
        "command": shown,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _child(python: str, *arguments: str | Path) -> str:
    """What another mode of this file prints, run by `python`."""
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"exit status {done.returncode}: {shlex.join(command)}\n{done.stderr}")
    return done.stdout.strip().rpartition("\n")[2]


def _check_tokens(made: Path, windows: Path) -> None:
    """Stop unless lors's record of what it `made` names the tokens in `windows`."""
    wanted = hashlib.sha256(json.dumps(json.loads(windows.read_text())).encode()).hexdigest()
    if wanted not in (made / "lors.json").read_text():
        sys.exit(f"{made} was calibrated with other tokens than {windows}: the comparison would not be a fair one")


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _results(methods: list[str], runs: list[dict[str, Any]], quality: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the dense model and for each method and tool: the median seconds, the largest memory."""
    rows: list[dict[str, Any]] = [{"method": None, "tool": "dense", **quality["models"][0]}]
    measured = iter(quality["models"][1:])
    for method, equal in zip(methods, quality["equal"], strict=True):
        for tool in TOOLS:
            own = [run for run in runs if (run["method"], run["tool"]) == (method, tool)]
            figures = {
                "seconds": statistics.median(run["seconds"] for run in own),
                "peak_bytes": max(run["peak_bytes"] for run in own),
            }
            rows.append(
                {"method": method, "tool": tool, **figures, **next(measured), EQUAL[method in QUANTIZING]: equal}
            )
    return rows


def _table(rows: list[dict[str, Any]], versions: dict[str, Any]) -> str:
    packages = {"lors": "lors_cli", "llm-compressor": "llmcompressor"}
    names = {"dense": "dense"} | {tool: f"{tool} {versions[tool][package]}" for tool, package in packages.items()}
    lines = [
        "| method | tool | seconds | peak memory, GB | zeros | perplexity | equal masks, or codes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        memory = f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else ""
        equal = next((f"{row[key]:.4%}" for key in EQUAL if key in row), "")
        cells = [row["method"] or "", names[row["tool"]], seconds, memory]
        cells += [f"{row['sparsity']:.4f}", f"{row['perplexity']:.2f}", equal]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def versions(packages: list[str]) -> None:
    """Print the versions of `packages` as JSON."""
    for package in packages:
        importlib.import_module(package)
    if "lors_cli" in packages:
        importlib.import_module("lors_cli.stages.prune")
    print(json.dumps({package: importlib.metadata.version(package) for package in packages}))


def token_windows(tokenizer: Path, text: Path, count: int) -> list[list[int]]:
    """`count` consecutive windows of the rows joined by a blank line, tokenised without special tokens."""
    from transformers import AutoTokenizer

    opened = gzip.open if text.suffix == ".gz" else open
    with opened(text, "rt", encoding="utf-8") as file:
        joined = "\n\n".join(json.loads(line)["text"] for line in file)
    ids = AutoTokenizer.from_pretrained(tokenizer)(joined, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < LENGTH * count:
        sys.exit(f"{text} has {len(ids)} tokens; {count} windows of {LENGTH} are needed")
    return [ids[start : start + LENGTH] for start in range(0, LENGTH * count, LENGTH)]


def windows(arguments: list[str]) -> None:
    """Write the calibration windows as a JSON list of lists of token ids."""
    model, text, out = map(Path, arguments)
    out.write_text(json.dumps(token_windows(model, text, SAMPLES)))


def llmcompressor(arguments: list[str]) -> None:
    """Prune or quantise `model` with llm-compressor into `out`."""
    method, model, windows, out = arguments

    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import GPTQModifier

    ids = json.loads(Path(windows).read_text())
    targets: dict[str, Any] = {"ignore": ["re:.*lm_head"]}
    if method in QUANTIZING:
        groups = {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}
        order = "static" if method == "gptq-act-order" else None
        recipe = GPTQModifier(config_groups=groups, actorder=order, dampening_frac=0.01, block_size=128, **targets)
    else:
        modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
        recipe = modifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], **targets)
    oneshot(
        model=model,
        precision="float32",
        recipe=recipe,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(window) for window in ids]}),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
        max_seq_length=LENGTH,
        pipeline="sequential",
        output_dir=out,
    )


def measure(arguments: list[str]) -> None:
    """Write perplexity and share of zeros of all models, and that of equal masks or codes of each pair, as JSON."""
    text, out, dense, *made = map(Path, arguments)
    import torch

    tokens = torch.tensor(token_windows(dense, text, PERPLEXITY_WINDOWS))
    models = []
    for directory in (dense, *made):
        linears = _linears(directory)
        masks = [linear if linear.dtype == torch.bool else linear == 0 for linear in linears.values()]
        groups = [mask.view(-1, 4).sum(-1) for mask in masks]
        if directory.name == "pruned" and any(bool((group < 2).any()) for group in groups):
            sys.exit(f"{directory} is not sparse 2:4")
        sparsity = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        models.append({"sparsity": sparsity, "perplexity": perplexity(directory, tokens)})
    equal = [_equal(_linears(first), _linears(second)) for first, second in zip(made[::2], made[1::2], strict=True)]
    out.write_text(json.dumps({"models": models, "equal": equal}))


def _linears(directory: Path) -> dict[str, Any]:
    """Where the weight of each linear of the blocks is zero, by name, bool (R, C); its codes, int8, if it has some."""
    from safetensors import safe_open

    from lors_cli.artifacts.quantized_files import open_quantized

    if directory.name == "quantized":
        files = open_quantized(directory)
        return {f"{name}.weight": files.quantized(name).codes for name in files.linears}
    zeros = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if ".layers." in name and name.endswith("proj.weight")]  # noqa: SIM118
            zeros.update({name: tensors.get_tensor(name) == 0 for name in names})
    return zeros


def _equal(first: dict[str, Any], second: dict[str, Any]) -> float:
    if first.keys() != second.keys():
        sys.exit(f"the results have different linears: {sorted(first.keys() ^ second.keys())[:4]}")
    same = sum(int((first[name] == second[name]).sum()) for name in first)
    return same / sum(mask.numel() for mask in first.values())


def perplexity(directory: Path, tokens: Any) -> float:
    """The perplexity of a model on the rows of `tokens`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in tokens.split(PERPLEXITY_BATCH)]
    return math.exp(sum(losses) / len(tokens))


MODES: dict[str, Callable[[list[str]], None]] = {
    "compare": compare,
    "versions": versions,
    "windows": windows,
    "llmcompressor": llmcompressor,
    "measure": measure,
}

if __name__ == "__main__":
    MODES[sys.argv[1]](sys.argv[2:])

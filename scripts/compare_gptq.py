"""GPTQ against other implementations of it, on the linears and the whole of a model such as SmolLM2-135M.

solves MODEL TEXT OUT                  single linears by llm-compressor's solver, on one Hessian and the same scales
masked PRUNED TEXT HELD_OUT OUT        a pruned model, block by block, by the plain GPTQ of this file and by lors

TEXT is what is calibrated with and HELD_OUT what perplexity is measured on, .jsonl or .jsonl.gz with a field "text";
OUT is a JSON file of all figures. `solves` runs in the environment of compare_llmcompressor.sh, with PYTHONPATH=.
"""

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from compare_llmcompressor import LENGTH, PERPLEXITY_WINDOWS, SAMPLES, WEIGHTS, hardware, perplexity, token_windows
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

SOLVED, SOLVED_WINDOWS = (0, 14, 29), 4  # blocks of which single linears are solved for, and windows of their Hessians
DAMPINGS = (0.01, 0.01 * (1 + 1e-5), 0.01 * (1 - 1e-5))  # the solve is chaotic: a hair's breadth makes another model


def solves(arguments: list[str]) -> None:
    """Solve for the codes of some linears with both tools, print a table and write it as JSON.

    The Hessians are those of the dense model's inputs. Run it with the Python of llm-compressor and PYTHONPATH=. .
    """
    model, text, out = map(Path, arguments)
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    from lors_cli.quantization import gptq
    from lors_cli.quantization.grid import Grid, fit

    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    hessians: dict[str, Any] = {}

    def gather(name: str, inputs: Any) -> None:
        x = inputs[0].flatten(0, 1)
        hessians[name] = hessians.get(name, 0) + 2 * x.T @ x

    names = [f"model.layers.{block}.{place}" for block in SOLVED for place in ("self_attn.q_proj", "mlp.down_proj")]
    for name in names:
        dense.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: gather(name, inputs))
    with torch.no_grad():
        for window in torch.tensor(token_windows(model, text, SOLVED_WINDOWS)).split(1):
            dense.model(window)
    args = QuantizationArgs(**WEIGHTS, actorder=None)
    grid = Grid(args.num_bits, args.group_size)
    rows = []
    for name in names:
        weight, hessian = dense.get_parameter(f"{name}.weight").detach(), hessians[name]
        scales = fit(weight, grid)
        groups = weight.unflatten(1, (-1, grid.group_size))
        scale, zero_point = calculate_qparams(groups.amin(2), groups.amax(2), args)
        ours = gptq.quantize(weight, gptq.prepare(hessian), grid, torch.float32, scales).weight()
        fitted = gptq.quantize(weight, gptq.prepare(hessian), grid, torch.float32).weight()
        given = weight[None].clone(), hessian[None].clone(), scale[None], zero_point[None]
        theirs = quantize_weight(*given, None, args, blocksize=128, percdamp=0.01)[0][0]

        def lost(made: Any, weight: Any = weight, hessian: Any = hessian) -> float:
            apart, whole = ((one @ hessian * one).sum().double() for one in (made - weight, weight))
            return float((apart / whole).sqrt())

        codes = [(one / scales.scale.repeat_interleave(grid.group_size, 1)).round() for one in (ours, theirs)]
        rows.append(
            {
                "linear": name,
                "equal_scales": float((scale == scales.scale).float().mean()),
                "equal_codes": float((codes[0] == codes[1]).float().mean()),
                "error_llmcompressor": lost(theirs),
                "error_lors_on_these_scales": lost(ours),
                "error_lors": lost(fitted),
            }
        )
    facts = {"windows": SOLVED_WINDOWS, "length": LENGTH, "quantization": WEIGHTS, "hardware": hardware()}
    versions = {
        package: importlib.metadata.version(package) for package in ("llmcompressor", "compressed_tensors", "torch")
    }
    out.write_text(json.dumps({**facts, "versions": versions, "linears": rows}, indent=2) + "\n")
    print("| linear | equal scales | equal codes | error, llm-compressor | lors, the same scales | lors |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        first, second, *errors = list(row.values())[1:]
        print(f"| {row['linear']} | {first:.2%} | {second:.2%} | {' | '.join(f'{error:.5f}' for error in errors)} |")


def masked(arguments: list[str]) -> None:
    """Quantise a pruned model with both, and write how many codes are equal and the perplexities as JSON."""
    pruned, text, held_out, out = map(Path, arguments)
    from lors_cli.artifacts.quantized_files import open_quantized

    windows = torch.tensor(token_windows(pruned, text, SAMPLES))
    tokens = torch.tensor(token_windows(pruned, held_out, PERPLEXITY_WINDOWS))
    perplexities: dict[str, Any] = {"pruned": perplexity(pruned, tokens), "lors": [], "plain": []}
    shares = []
    for damping in DAMPINGS:
        with tempfile.TemporaryDirectory() as folder:
            ours = _by_lors(pruned, text, damping, Path(folder))
            files = open_quantized(ours)
            perplexities["lors"].append(perplexity(ours, tokens))
            model, made = _quantized(pruned, windows, damping), Path(folder, "plain")
            equal: list[Tensor] = []
            for linear in files.linears:
                dense = files.quantized(linear).weight(torch.float32)
                equal.append(model.get_parameter(f"{linear}.weight").isclose(dense, rtol=1e-6, atol=0).flatten())
            model.save_pretrained(made)
            perplexities["plain"].append(perplexity(made, tokens))
            shares.append(float(torch.cat(equal).double().mean()))
    facts = {
        "calibration": {"file": text.name, "windows": SAMPLES, "length": LENGTH},
        "perplexity": {"file": held_out.name, "windows": PERPLEXITY_WINDOWS, "length": LENGTH},
        "quantization": WEIGHTS,
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in ("lors_cli", "torch", "transformers")},
        "perplexities": perplexities,
        "dampings": DAMPINGS,
        "equal_weights": shares,
    }
    out.write_text(json.dumps(facts, indent=2) + "\n")
    print(out.read_text())


def _by_lors(pruned: Path, text: Path, damping: float, folder: Path) -> Path:
    """The directory of the model that `lors quantize` makes."""
    from lors_cli import pipeline
    from lors_cli.config.load import load

    calibration = {"dataset": str(text), "samples": SAMPLES, "sequence_length": LENGTH, "sampling": "concat"}
    section = {"method": "gptq", "group_size": WEIGHTS["group_size"], "damping": damping, "calibration": calibration}
    config = {"model": str(pruned), "output_dir": str(folder / "lors"), "dtype": "float32", "device": "cpu"}
    file = folder / "config.yaml"
    file.write_text(json.dumps({**config, "quantize": section}))  # JSON is YAML
    pipeline.run(load(file, []), ["quantize"])
    return folder / "lors" / "quantized"


@torch.no_grad()
def _quantized(pruned: Path, windows: Tensor, damping: float) -> Any:
    """The model with the linears of its blocks quantised one block after another, solved in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32).eval()
    given: list[Any] = []

    class ReachedError(Exception):
        pass

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args, kwargs))
        raise ReachedError

    first = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows.split(1):
        with suppress(ReachedError):
            model.model(window, use_cache=False)
    first.remove()
    for block in model.model.layers:
        hessians: dict[nn.Linear, Tensor] = {}

        def gather(linear: Any, inputs: Any, hessians: dict[nn.Linear, Tensor] = hessians) -> None:
            x = inputs[0].flatten(0, 1).double()
            hessians[linear] = hessians.get(linear, 0) + 2 * x.T @ x

        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        hooks = [linear.register_forward_pre_hook(gather) for linear in linears]
        for args, kwargs in given:
            block(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        for linear in linears:
            linear.weight.copy_(_plain(linear.weight.double(), hessians[linear], damping))
        given = [((block(*args, **kwargs), *args[1:]), kwargs) for args, kwargs in given]
    return model


def _plain(weight: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """GPTQ of a weight (R, C) as its paper has it, column by column; what is zero takes no part."""
    kept, size = weight != 0, WEIGHTS["group_size"]
    low, high = -(2 ** (WEIGHTS["num_bits"] - 1)), 2 ** (WEIGHTS["num_bits"] - 1) - 1
    damped = hessian + damping * hessian.diag().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    done = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        if j % size == 0:
            largest = weight[:, j : j + size].abs().amax(1)
            scale = (2 * largest / (high - low)).float().clamp(min=torch.finfo(torch.float32).tiny).to(weight.dtype)
        done[:, j] = (weight[:, j] / scale).round().clamp(low, high) * scale
        error = (weight[:, j] - done[:, j]) / upper[j, j]
        weight[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :] * kept[:, j + 1 :]
    return done


MODES: dict[str, Callable[[list[str]], None]] = {"solves": solves, "masked": masked}

if __name__ == "__main__":
    MODES[sys.argv[1]](sys.argv[2:])

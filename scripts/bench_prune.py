"""Time and memory of `lors prune`, or of `lors quantize`, on the shapes of a large model, from a few random blocks.

    python scripts/bench_prune.py --shape llama-3-8b --device cuda --json prune_bench.json
    python scripts/bench_prune.py --shape smollm2-135m --device cpu --samples 4 --length 64 --blocks 1      # checks it
    python scripts/bench_prune.py --quantize --shape tinyllama-1.1b --device cpu --blocks 9 --samples 2 --length 256

Each method is run as a whole command on models of 2 and of 2 + BLOCKS blocks with the same calibration windows; the
difference is the time of a block, which is scaled to the model's depth. Of `prune` the fused column kernel is timed
against the plain loop on one block of columns, where there is a GPU.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lors_cli.artifacts.shard_writer import ShardWriter
from lors_cli.benchmark import clock
from lors_cli.benchmark.subject import SHAPES, read_shape
from lors_cli.kernels import sparsegpt as kernel
from lors_cli.models import load
from lors_cli.pruning import sparsegpt
from lors_cli.run import environment
from lors_cli.sparsity.pattern import Pattern


def make_model(directory: Path, shape: str, blocks: int) -> Path:
    """A Llama of `blocks` blocks with random bf16 weights."""
    config = read_shape(shape)
    config.num_hidden_layers, config.dtype, config.architectures = blocks, torch.bfloat16, [LlamaForCausalLM.__name__]
    config.save_pretrained(directory)
    words = WordLevel({str(token): token for token in range(config.vocab_size)}, unk_token="0")  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(directory)
    layout = load.layout(load.skeleton(directory, "bfloat16"))
    writer = ShardWriter(directory, layout)
    for name, planned in layout.items():
        norm = planned.dim() == 1
        writer.write(
            name, torch.ones_like(planned, device="cpu") if norm else torch.randn(planned.shape).bfloat16() * 0.02
        )
    return directory


# What each stage is run with, besides the calibration.
SECTIONS: dict[str, list[dict[str, Any]]] = {
    "prune": [{"method": "sparsegpt", "sparsity": "2:4"}, {"method": "wanda", "sparsity": "2:4"}],
    "quantize": [{"method": "gptq", "bits": 4, "group_size": 128}],
}


def run(stage: str, config: dict[str, Any], work: Path) -> dict[str, Any]:
    """One command of a stage; its seconds as a whole command, and its manifest's peak memory."""
    path = work / "config.yaml"
    path.write_text(json.dumps(config))
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "lors_cli", stage, str(path), "--force"], check=True)
    seconds = time.monotonic() - started
    output = "pruned" if stage == "prune" else "quantized"
    made = json.loads((Path(config["output_dir"]) / output / "lors.json").read_text())
    return {"seconds": seconds, "work_seconds": made["seconds"], **made["peak_memory"]}


def columns(device: str, rows: int) -> dict[str, float]:
    """Milliseconds of one block of 128 columns for `rows` rows: the plain loop, and the fused kernel on a GPU."""
    weight = torch.randn(rows, 128, device=device)
    factor = torch.linalg.cholesky(torch.eye(128, device=device) + 0.1, upper=True)
    pattern = Pattern.parse("2:4")
    ways = {"plain": sparsegpt.prune_block} | ({"fused": kernel.prune_block} if kernel.available(weight) else {})
    runs = {name: partial(way, weight, factor, pattern, None) for name, way in ways.items()}
    return {name: seconds * 1e3 for name, seconds in clock.medians(runs, weight.device, rounds=10).items()}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", action="store_true", help="run `lors quantize` (gptq, int4), not `lors prune`")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=4, help="blocks beyond the first two")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    config = read_shape(options.shape)
    depth, intermediate = config.num_hidden_layers, config.intermediate_size
    results: dict[str, Any] = {}
    stage = "quantize" if options.quantize else "prune"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        draw = random.Random(0)
        rows = [
            {"input_ids": [draw.randrange(config.vocab_size) for _ in range(options.length)]}
            for _ in range(options.samples)
        ]
        (work / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        models = {n: make_model(work / f"model{n}", options.shape, n) for n in (2, 2 + options.blocks)}
        for section in SECTIONS[stage]:
            runs = {}
            for blocks, model in models.items():
                calibration = {"dataset": str(work / "tokens.jsonl"), "samples": options.samples}
                calibration["sequence_length"] = options.length
                common = {"model": str(model), "output_dir": str(work / "out"), "device": options.device}
                runs[blocks] = run(stage, {**common, stage: {**section, "calibration": calibration}}, work)
            few, many = runs[2], runs[2 + options.blocks]
            block = (many["work_seconds"] - few["work_seconds"]) / options.blocks
            whole = few["work_seconds"] + (depth - 2) * block
            results[section["method"]] = {"seconds_per_block": block, "seconds_for_all_blocks": whole, "runs": runs}
    if stage == "prune":
        results["columns_ms"] = columns(options.device, intermediate)
    results |= {"shape": options.shape, "samples": options.samples, "sequence_length": options.length}
    results |= {"command": " ".join(sys.argv), "hardware": environment.hardware(), "versions": environment.versions()}
    print(
        "| method | seconds a block | seconds for the model | peak host GB | peak GPU GB |\n|---|---:|---:|---:|---:|"
    )
    for section in SECTIONS[stage]:
        method = section["method"]
        result = results[method]
        peak = result["runs"][2 + options.blocks]
        sizes = f"{peak['host_bytes'] / 1e9:.2f} | {peak.get('gpu_bytes', 0) / 1e9:.2f}"
        print(f"| {method} | {result['seconds_per_block']:.2f} | {result['seconds_for_all_blocks']:.1f} | {sizes} |")
    if stage == "prune":
        print("128 columns of the widest linear, ms:", results["columns_ms"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

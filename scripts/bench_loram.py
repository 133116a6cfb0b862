"""Peak memory of training LoRA on a whole model, on a structured copy of it (LoRAM), and on that in four bits (QLoRAM).

    python scripts/bench_loram.py --json docs/results/loram_memory.json

A random Llama is made, so that its size can be chosen (--blocks, --hidden); what counts is how much is in memory, not
what it says. Each training is a process of its own; the peak is the one that lors writes into its manifest, from which
what Python and the libraries take (an empty process that has imported them) is subtracted on a CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lors_cli import console
from lors_cli.artifacts import files
from lors_cli.models import load, source
from lors_cli.run import environment, manifest

TRAIN = ["train.method=lora", "train.rank=8", "train.target_modules=['*']", "train.dataset=python-topics"]


def make_model(folder: Path, options: argparse.Namespace) -> Path:
    """A random Llama with the tokenizer of SmolLM2."""
    place = folder / "model"
    tokenizer = load.load_tokenizer(source.resolve(source.BUILT_IN))
    heads = options.hidden // 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM._from_config(config, dtype=load.DTYPES[options.dtype]).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def lors(stage: str, config: Path, *settings: str) -> None:
    """Run a stage in a process of its own."""
    command = [sys.executable, "-m", "lors_cli", stage, str(config), "--quiet", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def libraries() -> int:
    """The peak of a process that has imported what a training imports, in bytes."""
    imported = "lors_cli.stages.train, lors_cli.training.trainer, bitsandbytes"
    code = f"import {imported}; from lors_cli.artifacts import manifest; print(memory.peaks()['host_bytes'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune once, train in each way."""
    config = folder / "config.yaml"
    model = make_model(folder, options)
    config.write_text(
        json.dumps(
            {
                "model": str(model),
                "output_dir": str(folder / "run"),
                "dtype": options.dtype,
                "prune": {
                    "method": "structured_random",
                    "ratio": options.ratio,
                    "keep_first": options.keep_first,
                    "keep_last": options.keep_last,
                },
                "train": {"method": "lora", "dataset": "python-topics"},
            }
        )
    )
    lors("prune", config)
    small, own = folder / "run" / "pruned", 0 if torch.cuda.is_available() else libraries()
    facts = manifest.read(small) or {}
    ways = {
        "LoRA on the original": [f"train.input={model}"],
        "LoRAM": [f"train.input={small}"],
        "QLoRAM (nf4)": [f"train.input={small}", "train.base=nf4"],
    }
    found = {}
    for number, (name, settings) in enumerate(ways.items()):
        output = folder / str(number)
        sizes = [f"train.sequence_length={options.tokens}", "train.batch_size=1", "train.max_steps=2"]
        lors("train", config, *TRAIN, *sizes, *settings, f"output_dir={output}")
        peak = (manifest.read(output / "adapter") or {})["peak_memory"]
        found[name] = {"peak_bytes": peak.get("gpu_bytes", peak["host_bytes"]) - own}
    first = found["LoRA on the original"]["peak_bytes"]
    for row in found.values():
        row["times_smaller"] = round(first / row["peak_bytes"], 3)
    return {"parameters": facts["parameters"], "reduction": facts["reduction"], "libraries_bytes": own, "ways": found}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ratio", type=float, default=0.65)
    parser.add_argument("--keep-first", type=int, default=4)
    parser.add_argument("--keep-last", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    found |= {"settings": {**vars(options), "json": str(options.json)}}
    found |= {"versions": environment.versions(), "hardware": environment.hardware()}
    rows = [[n, f"{r['peak_bytes'] / 1e9:.3f}", f"{r['times_smaller']:.2f}"] for n, r in found["ways"].items()]
    print(f"parameters {found['reduction']:.2f} times fewer")
    print(console.markdown_table(["training", "peak, GB", "times smaller"], rows))
    if options.json:
        files.write_json(options.json, found)


if __name__ == "__main__":
    main()

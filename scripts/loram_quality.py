"""Does an adapter that was trained on a small model help the original? Perplexity on held-out instruction text.

    python scripts/loram_quality.py runs/loram_quality --general c4.jsonl --rows alpaca.jsonl \
        --json docs/results/loram_smollm2.json

One smaller model is pruned and aligned on general text, once, as its publisher would. On it an adapter is trained on
instruction rows with each seed (the start, and the order of the rows) and measured there ("tuned": without recovery)
and, recovered, on the original ("merged"). The arm "lora" trains on the original instead. Rows are joined as text in
Alpaca's form, prompt and answer, in training as in the test. Started again, the script goes on.
"""

import argparse
import json
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

from lors_cli import console, pipeline
from lors_cli.artifacts import files
from lors_cli.config.schema import Config
from lors_cli.data.instructions import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT
from lors_cli.data.sources import Source
from lors_cli.run import environment, manifest

TRAINING_ROWS, HELD_OUT_ROWS = 8000, 400
Settings = dict[str, Any]


def write_rows(folder: Path, rows: str) -> dict[str, str]:
    """The instruction rows as text, in two files."""
    texts = (
        (ALPACA_WITH_INPUT if row.get("input") else ALPACA_WITHOUT_INPUT).format(**row) + row["output"]
        for row in Source(path=rows, key="--rows").rows()
    )
    paths = {}
    for name, count in (("train", TRAINING_ROWS), ("held_out", HELD_OUT_ROWS)):
        lines = [json.dumps({"text": text}) + "\n" for text in islice(texts, count)]
        files.write_text(folder / f"{name}.jsonl", "".join(lines))
        paths[name] = str(folder / f"{name}.jsonl")
    return paths


def config(options: argparse.Namespace, output: Path, **sections: Settings) -> Config:
    """A config with these sections."""
    return Config.model_validate(
        {"model": options.model, "output_dir": str(output), "dtype": options.dtype, "seed": 0, **sections}
    )


def train_and_measure(options: argparse.Namespace, arm: str, seed: int, paths: dict[str, str]) -> Settings:
    """The perplexities of one training."""
    folder = Path(options.folder)
    output = folder / f"{arm}_seed{seed}"
    size = {"sequence_length": options.sequence_length}
    small = {"input": str(folder / "aligned" if arm == "loram" else options.model)}
    sections: dict[str, Settings] = {
        "train": {
            "method": "lora",
            "rank": 8,
            "alpha": 16,
            "target_modules": ["*"],
            **small,
            **size,
            "dataset": {"path": paths["train"], "format": "text"},
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "max_steps": options.steps,
        },
        "merge": {"dense": True},
        "eval": {
            "models": ["dense", "tuned", "merged"] if arm == "loram" else ["merged"],
            "perplexity": {"dataset": paths["held_out"], "samples": options.windows, **size},
        },
    }
    if arm == "loram":
        sections |= {"recover": small}
        sections["merge"] = {}
    made = config(options, output, **sections).model_copy(update={"seed": seed})
    pipeline.run(made, [name for name in ("train", "recover", "merge", "eval") if name in sections])
    models = json.loads((output / "eval" / "results.json").read_text())["models"]
    found = {name: model["perplexity"]["value"] for name, model in models.items()}
    peak = (manifest.read(output / "adapter") or {})["peak_memory"]
    return {"arm": arm, "seed": seed, **found, "peak_memory": peak}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--general", required=True, help="rows of general text, for the alignment")
    parser.add_argument("--rows", required=True, help="instruction rows, Alpaca's fields")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--align-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="loram,lora")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console.setup(-1)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_rows(folder, options.rows)
    size = {"sequence_length": options.sequence_length, "batch_size": options.batch_size}
    prune = {"method": "structured_random", "ratio": options.ratio, "keep_first": 4, "keep_last": 2}
    align = {"dataset": options.general, "learning_rate": 3e-4, "max_steps": options.align_steps, **size}
    pipeline.run(config(options, folder, prune=prune, align=align), ["prune", "align"])
    runs = [
        train_and_measure(options, arm, int(seed), paths)
        for arm in options.arms.split(",")
        for seed in options.seeds.split(",")
    ]
    rows = [["dense (untuned)", f"{runs[0]['dense']:.3f}"]] if "dense" in runs[0] else []
    for arm in options.arms.split(","):
        for name, words in (("tuned", "without recovery"), ("merged", "on the original")):
            values = [run[name] for run in runs if run["arm"] == arm and name in run]
            if values:
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                rows.append([f"{arm}, {words}", f"{statistics.mean(values):.3f}{spread}"])
    print(console.markdown_table(["model", "perplexity"], rows))
    if options.json:
        reduction = (manifest.read(folder / "pruned") or {})["reduction"]
        found = {"settings": {**vars(options), "json": str(options.json)}, "reduction": reduction, "runs": runs}
        files.write_json(
            options.json, {**found, "versions": environment.versions(), "hardware": environment.hardware()}
        )


if __name__ == "__main__":
    main()

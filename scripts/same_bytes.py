"""Whether a change of the code changes what `lors` writes: digests of all that many runs on tiny models leave.

    python scripts/same_bytes.py record OLD.json [--keep DIRECTORY]    # with the code before the change
    python scripts/same_bytes.py record NEW.json [--keep DIRECTORY]    # with the code after it, on the same machine
    python scripts/same_bytes.py compare OLD.json NEW.json             # lists what differs; exit status 1 if anything

`same_bytes.yaml` has the runs. A record has the digest of every file below the directory of each run, of a JSON file
also those of its values, and of what each command printed. Safetensors files count byte by byte. What differs from one
time to the next (times, speeds, the memory of the process) is replaced by a constant in the files themselves, before a
later command reads them. `lors.log` and `.lock` are left out, and so is what a command that succeeds says on stderr.
--keep leaves all files in a new directory: `diff -r` of two of them shows how files differ.

Only the command line is used, in this process, of the code that the script lies beside. Where a command fails, or one
succeeds that has to fail, nothing is recorded.
"""

import argparse
import gc
import gzip
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the code beside this script, whatever is installed
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", COLUMNS="120")

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lors_cli.cli import app

Record = dict[str, dict[str, str]]  # by a file's path, digests of the whole ("") and of a JSON file's keys

NUMBERS = "seconds|tokens_per_second|host_bytes|estimated_bytes|[a-z]+_runtime|[a-z]+_(?:samples|steps)_per_second"
VOLATILE = {
    rf'"({NUMBERS})": [-+.e\d]+': r'"\1": 1',
    r'"created": "[^"]*"': '"created": "2026-01-02T03:04:05+00:00"',
    r"(memory: host|memory:|: process) \d+\.\d+": r"\1 1.00",  # in a plan: the sums, and what Python itself takes
    r"(\| +\d+ \|) +\d+\.\d \|": r"\1 1.0 |",  # in a sweep's table: the seconds after the steps
}
TEXTS, SKIPPED = (".json", ".jsonl", ".md", ".txt"), ("lors.log", ".lock")
WITH_CONFIG = ("run", "prune", "align", "train", "recover", "merge", "eval", "sweep")

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
ROWS: dict[str, list[dict[str, Any]]] = {
    "texts/0": [{"text": f"Row {i} says {'word ' * (i % 7)}{i * 37}."} for i in range(40)],
    "texts/1": [{"text": " ".join(str(i * k) for k in range(i % 11 + 3))} for i in range(40)],
    "alpaca": [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 25)],
    "chat": [{"messages": [{"role": r, "content": f"{i} {r}"} for r in ("user", "assistant")]} for i in range(60)],
    "tokens": [{"input_ids": [(7 * i + 3 * j) % 384 for j in range(10 + i)]} for i in range(40)],
    "tasks/rows": [{"question": f"{i * i % 7}:", "choices": [" red", " blue sky"], "answer": i % 2} for i in range(9)],
}


def make_inputs(plan: dict[str, Any]) -> None:
    """Write the models, the data, the tasks and the config into the current directory."""
    tokenizer = make_tokenizer()
    for name, changes in plan["models"].items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**plan["shape"] | changes)
        model = AutoModelForCausalLM.from_config(config).to(config.dtype)
        if name == "broken":
            for weight in model.model.layers[1].mlp.parameters():
                weight.data *= 1e25
        model.save_pretrained(name, max_shard_size="60KB")
        tokenizer.save_pretrained(name)
        if name == "dense":
            linears = {key: weight for key, weight in model.named_parameters() if "_proj." in key}
            save_file({key: torch.rand_like(weight) > 0.5 for key, weight in linears.items()}, "masks.safetensors")
    for name, rows in ROWS.items():
        Path(name).parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    for name, task in plan["tasks"].items():
        Path(f"tasks/{name}.yaml").write_text(json.dumps({"task": name, **task}))  # JSON is YAML
    Path("config.yaml").write_text(json.dumps(plan["config"]))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens, trained on the rows."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<|end|>", "<|user|>", "<|assistant|>"], pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    core.train_from_iterator(map(json.dumps, ROWS.values()), trainers.BpeTrainer(vocab_size=384, **settings))
    ends = dict.fromkeys(("eos_token", "pad_token"), "<|end|>")
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, **ends)


def read_runs(plan: dict[str, Any]) -> dict[str, list[str]]:
    """The commands of each run, in order."""
    runs = {}
    for line in plan["runs"].splitlines():
        name, text = line.split(": ", 1)
        for word, meaning in (*plan["words"].items(), ("HERE", name)):
            text = text.replace(word, meaning)
        runs[name] = [command.strip() for command in text.split(";")]
    return runs


def perform(name: str, number: int, command: str) -> None:
    """Do a command of a run in the current directory; keep what it prints as a file of the run.

    Raises:
        SystemExit: it ended otherwise than it has to.

    """
    words = shlex.split(command.removeprefix("!"))
    if words[0] in WITH_CONFIG and not any(word.endswith(".yaml") for word in words):
        words[1:1] = ["config.yaml", f"output_dir={name}"]
    sys.argv = ["lors", *words]  # manifests have the command line
    gc.freeze()  # stages collect garbage, which takes a second where everything that was imported counts
    torch.manual_seed(0)
    result = CliRunner().invoke(app, words)
    if bool(result.exit_code) != command.startswith("!"):
        raise SystemExit(f"{name}: {shlex.join(sys.argv)}: exit status {result.exit_code}\n{result.output}")
    said = re.sub("(?s)^.*?(?=error: )", "", result.stderr) if result.exit_code else ""  # without the progress
    Path(name).mkdir(exist_ok=True)
    Path(name, f"printed-{number}.txt").write_text(f"exit status {result.exit_code}\n{result.stdout}{said}")
    for path in Path(name).rglob("*"):
        if path.suffix in TEXTS:
            text = content = path.read_text()
            for pattern, constant in VOLATILE.items():
                text = re.sub(pattern, constant, text)
            if text != content:
                path.write_text(text)


def digests(path: Path) -> dict[str, str]:
    """The digest of a file, and those of the values of a JSON file by their keys."""
    contents = {"": path.read_bytes()}
    if path.suffix == ".json" and isinstance(parts := json.loads(contents[""]), dict):
        contents |= {key: json.dumps(part).encode() for key, part in parts.items()}
    return {key: hashlib.sha256(part).hexdigest() for key, part in contents.items()}


def record(directory: Path) -> Record:
    """Do all runs in an empty directory."""
    torch.set_num_threads(1)  # so that sums are the same each time
    plan = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    os.chdir(directory)
    os.environ["HF_DATASETS_CACHE"] = str(directory / "cache")  # before lm-eval is imported
    make_inputs(plan)
    for name, commands in (runs := read_runs(plan)).items():
        print(name, file=sys.stderr)
        for number, command in enumerate(commands, 1):
            perform(name, number, command)
    files = [path for name in runs for path in sorted(Path(name).rglob("*")) if path.is_file()]
    return {str(path): digests(path) for path in files if path.name not in SKIPPED}


def differences(old: Record, new: Record) -> list[str]:
    """A line for each file that is not the same in both, with the keys of a JSON file whose values differ."""
    lines = []
    for path in sorted({*old, *new}):
        if path not in old or path not in new:
            lines.append(f"{path}: only in the {'old' if path in old else 'new'} one")
        elif old[path] != new[path]:
            keys = sorted({*old[path], *new[path]} - {""})
            changed = ", ".join(key for key in keys if old[path].get(key) != new[path].get(key))
            lines.append(f"{path}: {changed or 'differs'}")
    return lines


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--keep", type=Path, help="a new directory for all that is written")
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    options = parser.parse_args()
    if options.command == "compare":
        lines = differences(*(json.loads(path.read_text()) for path in options.files))
        print("\n".join(lines or ["nothing differs"]))
        raise SystemExit(bool(lines))
    file = options.file.resolve()
    if options.keep:
        options.keep.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        digests = record((options.keep or Path(temporary)).resolve())
        file.write_text(json.dumps(digests, indent=1) + "\n")
        os.chdir("/")  # so that the temporary one can go


if __name__ == "__main__":
    main()

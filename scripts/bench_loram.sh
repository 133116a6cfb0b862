#!/usr/bin/env bash
# Peak memory of training LoRA on a whole model, on a structured copy of it (LoRAM), and on that in four bits (QLoRAM).
#
#   scripts/bench_loram.sh [FOLDER [key=value ...]]        such as train.sequence_length=128 prune.ratio=0.5
#
# The model is a random Llama of BLOCKS blocks and HIDDEN channels, because only the memory is measured. Each training is
# a process of its own, and its peak is the one that lors writes into the manifest. On a CPU that leaves out what Python
# and the libraries take, which is the memory of a process that has only imported them.
set -euo pipefail
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"

BLOCKS=${BLOCKS:-20} HIDDEN=${HIDDEN:-1024} python - "$folder/model" <<'PYTHON'
import os, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from lors_cli.models import load, source

tokenizer, hidden = load.load_tokenizer(source.resolve(source.BUILT_IN)), int(os.environ["HIDDEN"])
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 11 // 4, tie_word_embeddings=True,
    num_hidden_layers=int(os.environ["BLOCKS"]), num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
)
LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
PYTHON

cat >"$folder/config.yaml" <<YAML
model: $folder/model
output_dir: $folder/run
dtype: bfloat16
prune: {method: structured_random, ratio: 0.65, keep_first: 4, keep_last: 2}
train: {method: lora, rank: 8, target_modules: ["*"], dataset: python-topics, sequence_length: 32, batch_size: 1, max_steps: 2}
YAML
lors prune "$folder/config.yaml" --quiet "${@:2}"
train() { lors train "$folder/config.yaml" --quiet "${@:3}" "output_dir=$folder/$1" "train.input=$2" >"$folder/$1.log"; }
train original "$folder/model" "${@:2}"
train loram "$folder/run/pruned" "${@:2}"
train qloram "$folder/run/pruned" "${@:2}" train.base=nf4

python - "$folder" <<'PYTHON'
import json, pathlib, sys
import bitsandbytes, lors_cli.stages.train, lors_cli.training.trainer
from lors_cli.models import memory

first, own = None, memory.peaks()["host_bytes"]
for way in ("original", "loram", "qloram"):
    peak = json.loads((pathlib.Path(sys.argv[1]) / way / "adapter/lors.json").read_text())["peak_memory"]
    size = peak["gpu_bytes"] if "gpu_bytes" in peak else peak["host_bytes"] - own
    first = first or size
    print(f"{way:10} {size / 1e9:.3f} GB, {first / size:.2f} times smaller")
PYTHON

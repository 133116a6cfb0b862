#!/usr/bin/env bash
# GSM8K's training rows as JSON lines of prompt and completion, in the form of a task of lm-eval:
#
#   scripts/reproduce/gsm8k_rows.sh ROWS FILE          gsm8k_cot, whose answers end with "The answer is N."; marks such
#                                                      as <<48/2=24>> are left out
#   scripts/reproduce/gsm8k_rows.sh ROWS FILE plain    gsm8k, whose answers are those of the rows, as SQFT's authors train
#
# ROWS is a file with the rows of openai/gsm8k: question, and an answer that ends with "#### N". How LoRAM's authors wrote
# the rows is not known.
set -euo pipefail
mkdir -p "$(dirname "${2:?usage: scripts/reproduce/gsm8k_rows.sh ROWS FILE [plain]}")"
exec python - "$@" <<'PYTHON'
import json, re, sys
from lors_cli.data.sources import Source

if sys.argv[3:] not in ([], ["plain"]):
    raise SystemExit(f"expected nothing or plain after FILE, got {' '.join(sys.argv[3:])}")
with open(sys.argv[2], "w", encoding="utf-8") as file:
    for row in Source(path=sys.argv[1], key="ROWS").rows():
        steps, mark, number = row["answer"].rpartition("#### ")
        if not mark:
            raise SystemExit(f"expected an answer that ends with '#### N', got {row['answer']!r}")
        steps = " ".join(re.sub(r"<<.*?>>", "", steps).split())
        pair = {"prompt": f"Q: {row['question']}\nA:", "completion": f" {steps} The answer is {number.strip()}."}
        if sys.argv[3:]:
            pair = {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}
        print(json.dumps(pair), file=file)
PYTHON

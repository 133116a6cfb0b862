#!/usr/bin/env bash
# GSM8K's training rows in the form of lm-eval's gsm8k_cot, whose answers end with "The answer is N.": JSON lines of prompt
# and completion. Marks such as <<48/2=24>> are left out. How LoRAM's authors wrote the rows is not known.
#
#   scripts/reproduce/gsm8k_rows.sh ROWS FILE
#
# ROWS is a file with the rows of openai/gsm8k: question, and an answer that ends with "#### N".
set -euo pipefail
mkdir -p "$(dirname "${2:?usage: scripts/reproduce/gsm8k_rows.sh ROWS FILE}")"
exec python - "$@" <<'PYTHON'
import json, re, sys
from lors_cli.data.sources import Source

with open(sys.argv[2], "w", encoding="utf-8") as file:
    for row in Source(path=sys.argv[1], key="ROWS").rows():
        steps, mark, number = row["answer"].rpartition("#### ")
        if not mark:
            raise SystemExit(f"expected an answer that ends with '#### N', got {row['answer']!r}")
        steps = " ".join(re.sub(r"<<.*?>>", "", steps).split())
        pair = {"prompt": f"Q: {row['question']}\nA:", "completion": f" {steps} The answer is {number.strip()}."}
        print(json.dumps(pair), file=file)
PYTHON

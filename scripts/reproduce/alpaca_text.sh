#!/usr/bin/env bash
# Alpaca rows as text, prompt and answer: 8,000 of them as FOLDER/train.jsonl, the next 400 as FOLDER/held_out.jsonl.
#
#   scripts/reproduce/alpaca_text.sh ROWS FOLDER
set -euo pipefail
mkdir -p "${2:?usage: scripts/reproduce/alpaca_text.sh ROWS FOLDER}"
exec python - "$@" <<'PYTHON'
import itertools, json, pathlib, sys
from lors_cli.data.instructions import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT
from lors_cli.data.sources import Source

rows, folder = Source(path=sys.argv[1], key="ROWS").rows(), pathlib.Path(sys.argv[2])
for name, count in (("train", 8000), ("held_out", 400)):
    with (folder / f"{name}.jsonl").open("w") as file:
        for row in itertools.islice(rows, count):
            prompt = (ALPACA_WITH_INPUT if row.get("input") else ALPACA_WITHOUT_INPUT).format(**row)
            print(json.dumps({"text": prompt + row["output"]}), file=file)
PYTHON

#!/usr/bin/env bash
# Alpaca rows as text, prompt and answer: 8,000 of them as FOLDER/train.jsonl, the next 400 as FOLDER/held_out.jsonl.
#
#   scripts/reproduce/alpaca_text.sh ROWS FOLDER
set -euo pipefail
mkdir -p "${2:?usage: scripts/reproduce/alpaca_text.sh ROWS FOLDER}"
exec python - "$@" <<'PYTHON'
import itertools, json, pathlib, sys
from lors_cli.data.fields import Fields, Place
from lors_cli.data.prompts import alpaca
from lors_cli.data.sources import Source

source, folder = Source(path=sys.argv[1], key="ROWS"), pathlib.Path(sys.argv[2])
rows = enumerate(source.rows(), 1)
for name, count in (("train", 8000), ("held_out", 400)):
    with (folder / f"{name}.jsonl").open("w") as file:
        for number, row in itertools.islice(rows, count):
            print(json.dumps({"text": alpaca(Fields(row, Place(source, number)), "").text}), file=file)
PYTHON

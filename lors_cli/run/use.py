"""What one can do with a directory: a few lines at the end of a merge, and the card of a packed one."""

import re
import shlex
from pathlib import Path

from lors_cli.artifacts import quantized_files
from lors_cli.models import structure, true_sizes
from lors_cli.run.card import STORED
from lors_cli.run.manifest import Manifest

HERE = "DIRECTORY"
LOADING = re.compile(r"## How to load it\n.*?(?=\n## |\Z)", re.DOTALL)
LIBRARY = re.compile(r"^library_name: .*$", re.MULTILINE)
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
PACKED = f"""## How to load it

This directory is packed by `lors pack`: its weights are stored without their zeros, and transformers cannot read them.
Run it as it is,

```python
import lors_cli

model = lors_cli.load("{HERE}", packed=True)
```

or with `lors generate {HERE} --prompt TEXT`; or make the model of it that it was, byte for byte, with
`lors unpack {HERE} OUTPUT`, which loads as any other.
"""
COMPRESSED = f"""## How to load it

This directory is compressed by `lors pack --compress`, to be kept and copied: nothing runs it as it is. Make the
model of it that it was, byte for byte, with `lors unpack {HERE} OUTPUT`, which loads as any other.
"""


def of_model(directory: Path, made: Manifest) -> list[str]:
    """The commands for a model that was merged just now."""
    place = shlex.quote(str(directory))
    lines = [f'`lors generate {place} --prompt "Name three rivers."` lets it write']
    if (smaller := structure.read(directory)) and not true_sizes.said(directory, smaller):
        return [*lines, f'`lors_cli.load("{directory}")` loads it in Python; other programs do not know its sizes']
    needs = ", which needs compressed-tensors" if quantized_files.grid_of(directory) else ""
    lines.append(f'`AutoModelForCausalLM.from_pretrained("{directory}")` loads it in transformers{needs}')
    lines.append("`lors eval` measures it; lm-eval and vLLM take the directory too")
    if made.facts.given.get("pattern") not in (None, "dense"):
        lines.append(f"`lors pack {place}` leaves its zeros out, to keep it or to run it so")
    return lines


def packed_card(card: str, *, compressed: bool = False) -> str:
    """The card of a packed or a compressed model, given that of the model, which may be empty."""
    loading = COMPRESSED if compressed else PACKED
    card = LIBRARY.sub("library_name: lors", card).replace(STORED, "")
    if LOADING.search(card):
        return LOADING.sub(lambda _: loading, card, count=1)
    front = FRONT.match(card)
    start = front.end() if front else 0
    whole = (
        f"{card[:start]}\n{loading}\nWhat follows is the card of the model that was packed.\n\n{card[start:].lstrip()}"
    )
    return whole.lstrip() if card else f"# A packed model\n\n{loading}"

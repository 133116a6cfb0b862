"""What is said of a model that can be used: by its directory, and on the card of a packed one."""

from pathlib import Path

from lors_cli.run import card, use

CARD = f"""---
library_name: transformers
tags: [lors]
---

# A model

made by `lors merge`.{card.STORED}

## How to load it

```python
model = AutoModelForCausalLM.from_pretrained("DIRECTORY_OR_REPOSITORY")
```

## Sparsity

half
"""


def test_the_card_of_a_packed_model_says_how_to_run_it_and_not_what_cannot_read_it() -> None:
    packed = use.packed_card(CARD)
    assert "from_pretrained" not in packed
    assert card.STORED not in packed
    assert "library_name: lors\n" in packed
    assert packed.index("# A model") < packed.index("lors unpack") < packed.index("## Sparsity")
    assert use.packed_card(use.packed_card(CARD)) == packed
    compressed = use.packed_card(CARD, compressed=True)
    assert "lors unpack" in compressed
    assert "lors generate" not in compressed
    assert "lors_cli.load" not in compressed
    foreign = use.packed_card("---\nlicense: mit\n---\nAnother model\n")
    assert foreign.startswith("---\nlicense: mit\n---\n")
    assert foreign.index("lors unpack") < foreign.index("Another model")


def test_the_card_of_this_program_has_the_part_that_is_replaced() -> None:
    source = Path(card.__file__).read_text()
    assert '"## How to load it"' in source
    assert "STORED" in source

from pathlib import Path
from typing import Any

import pytest

from lors_cli import adapters, pruning
from lors_cli.config.reference import json_schema, page, schema_text
from lors_cli.evaluation.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "made"), [("docs/config.md", page), ("configs/schema.json", schema_text)])
def test_the_shipped_files_are_what_the_sections_say(path: str, made: Any) -> None:
    assert (ROOT / path).read_text() == made(), "run: python -m lors_cli.config.reference"


def keys(section: str) -> dict[str, Any]:
    properties: dict[str, Any] = json_schema()["$defs"][section]["properties"]
    return properties


def test_an_editor_can_check_and_complete() -> None:
    assert keys("Prune")["method"]["enum"] == list(pruning.all_methods())
    assert keys("Train")["method"]["enum"] == list(adapters.METHODS)
    assert {"enum": list(PRESETS), "type": "string"} in keys("Eval")["preset"]["anyOf"]
    kinds = {kind.get("type") for kind in keys("Prune")["sparsity"]["anyOf"][0]["anyOf"]}
    assert kinds == {"number", "string"}
    assert {"type": "string"} in json_schema()["$defs"]["TrainingDataset"]["anyOf"]
    assert not json_schema()["additionalProperties"]


def test_every_key_is_described() -> None:
    for name, section in json_schema()["$defs"].items():
        for key, schema in section.get("anyOf", [section])[-1]["properties"].items():
            assert schema.get("description"), f"{name}.{key}"
    assert page().count("|w g|") == 0
    assert r"adds up \|w g\|" in page()

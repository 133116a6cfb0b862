"""SECURITY.md: each rule names a test that is there, and each key is one of a config."""

import re
from pathlib import Path

from lors_cli.config.problems import paths
from lors_cli.config.schema import Config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_every_rule_names_its_tests() -> None:
    rows = PAGE.split("## Inputs")[1].split("##")[0].strip().split("\n")[2:]
    named = [re.findall(r"`(tests/\S+\.py)` \|$", row) for row in rows]
    assert len(rows) > 10
    assert all(named)
    assert all("\ndef test_" in (ROOT / file).read_text() for files in named for file in files)


def test_the_keys_that_run_code_are_there_and_off() -> None:
    rows = PAGE.split("## What runs code")[1].split("##")[0]
    keys = set(re.findall(r"^\| `([\w.]+):", rows, re.MULTILINE))
    assert keys == {"trust_remote_code", "eval.trust_task_code", "eval.allow_code_execution"}
    assert keys <= set(paths(Config))

"""What the rows of the registries promise to the config and to the engine."""

import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lors_cli.pruning import (
    METHODS,
    PROFILES,
    REPAIRS,
    UPDATES,
    PermuteOptions,
    StructuredOptions,
    all_methods,
    statistics,
)
from lors_cli.pruning.rows import Method, Row
from lors_cli.sparsity.pattern import Pattern

ROWS: dict[str, Row] = {**all_methods(), **PROFILES, **REPAIRS, **UPDATES}
CALLED = ("prune", "prepare", "score", "keep", "share", "spread", "repair", "update")


def test_the_registry_is_read_without_torch() -> None:
    code = "import sys, lors_cli.pruning as p; p.all_methods(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", list(ROWS))
def test_each_option_is_taken_with_its_default_by_a_function_of_the_module(name: str) -> None:
    row = ROWS[name]
    module = import_module(row.module)
    assert module.__name__ == f"lors_cli.pruning.{name}"
    assert row.statistic is None or row.statistic in statistics.STATISTICS
    functions = [signature(getattr(module, key)) for key in CALLED if hasattr(module, key)]
    taken = {key: one.default for function in functions for key, one in function.parameters.items()}
    for option, field in row.options.model_fields.items():
        if option not in {*PermuteOptions.model_fields, *StructuredOptions.model_fields}:  # the engine's
            assert taken[option] == field.default, option


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_that_permutes_has_a_score(name: str) -> None:
    row = METHODS[name]
    if issubclass(row.options, PermuteOptions):
        assert row.score(torch.rand(4, 8), torch.rand(8), row.options()).shape == (4, 8)


def test_a_function_gets_the_options_that_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` and `prune` of SparseGPT have one options class, and each takes its own."""
    row, weight = METHODS["sparsegpt"], torch.randn(4, 8)
    inputs = torch.randn(20, 8)
    factors = [
        row.prepare(inputs.T @ inputs, row.options.model_validate({"damping": damping})) for damping in (0.01, 0.1)
    ]
    assert [factor.damping for factor in factors] == [0.01, 0.1]
    masks: list[Tensor] = [
        row.prune(weight, factors[0], Pattern(0.5), row.options.model_validate({"block_size": size})) != 0
        for size in (2, 8)
    ]
    assert not torch.equal(*masks)


def test_a_module_of_anybody_can_be_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_columns.py").write_text(
        "def prune(weight, statistic, pattern):\n"
        "    weight[:, int(weight.shape[1] * (1 - pattern.sparsity)) :] = 0\n"
        "    return weight\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = Method("first_columns", equation="j < C/2", paper="none")
    assert not row.calibrated
    weight = torch.ones(2, 4)
    assert row.prepare(None, row.options()) is None
    assert row.prune(weight, None, Pattern(0.5), row.options()).tolist() == [[1, 1, 0, 0]] * 2
    with pytest.raises(AttributeError, match="first_columns has no function 'score'"):
        row.score(weight, weight, row.options())

"""docs/add-a-method.md, followed literally: its files are put where their names say, its rows into the registries."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

import lors_cli.adapters
import lors_cli.pruning
from lors_cli.yaml12 import parse

PAGE = (Path(__file__).parents[1] / "docs/add-a-method.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
PACKAGES = {"tempered": lors_cli.pruning, "weight_dropout": lors_cli.adapters}


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Callable[[], None]]:
    """Add both methods, for one test; the tests that the page shows."""
    tests: list[Callable[[], None]] = []
    for number, (method, package) in enumerate(PACKAGES.items()):
        module, options, row, test = BLOCKS[4 * number : 4 * number + 4]
        assert f"`{package.__name__.replace('.', '/')}/{method}.py`" in PAGE
        directory = tmp_path / package.__name__
        directory.mkdir()
        (directory / f"{method}.py").write_text(module)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(directory)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{method}", raising=False)
        names = dict(vars(package))
        exec(options, names)  # noqa: S102 - the page is ours
        for name, made in eval("{" + row + "}", names).items():  # noqa: S307
            monkeypatch.setitem(package.METHODS, name, made)
        monkeypatch.setitem(vars(package), method, __import__(f"{package.__name__}.{method}", fromlist=["_"]))
        exec(test, names)  # noqa: S102
        tests += [names[name] for name in names if name.startswith("test_")]
    return tests


@pytest.fixture
def config(tests: list[Callable[[], None]], write_config: Callable[..., Path]) -> Path:
    sections = parse(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0])
    return write_config(**sections, eval=...)


def test_the_tests_on_the_page_pass(tests: list[Callable[[], None]]) -> None:
    assert len(tests) == 3
    for test in tests:
        test()


def test_both_methods_go_from_yaml_to_a_merged_model(lors: Callable[..., Result], config: Path, tmp_path: Path) -> None:
    lors("run", config)
    run, settings = tmp_path / "run", {}
    for directory in ("pruned", "adapter"):
        manifest: dict[str, Any] = json.loads((run / directory / "lors.json").read_text())
        settings[directory] = manifest["request"]["settings"]
    assert (settings["pruned"]["power"], settings["pruned"]["scope"]) == (0.7, "matrix")
    assert (settings["adapter"]["weight_dropout"], settings["adapter"]["start"]) == (0.1, 0.5)
    pruned, merged = (load_file(run / name / "model.safetensors") for name in ("pruned", "merged"))
    name = "model.layers.0.mlp.up_proj.weight"
    zeros = (pruned[name] == 0).sum(dim=1)
    assert zeros.sum() * 2 == pruned[name].numel()
    assert zeros.unique().numel() > 1, "scope: matrix does not take the same from each row"
    assert (merged[name][pruned[name] == 0] == 0).all()
    assert not torch.equal(merged[name], pruned[name])
    lors("train", config, "train.start=5", f"output_dir={tmp_path}/other", f"train.input={run}/pruned")
    other = load_file(tmp_path / "other/adapter/adapter_model.safetensors")
    for key, tensor in load_file(run / "adapter/adapter_model.safetensors").items():
        if "lora_A" in key:
            assert other[key].norm() > 5 * tensor.norm()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.power=-1"], "prune.power\n  expected: a number of at least 0"),
        (["prune.scope=rows"], "did you mean 'row'?"),
        (["prune.method=wanda"], "no power, because wanda does not have this option"),
        (["train.weight_dropout=1"], "train.weight_dropout\n  expected: a number of at least 0 and below 1"),
        (["train.method=sqft"], "no start, because sqft"),
        (["train.powr=1"], "a known key"),
    ],
)
def test_their_options_are_checked(
    lors: Callable[..., Result], config: Path, overrides: list[str], message: str
) -> None:
    assert message in lors("run", config, *overrides, "--dry-run", status=2).stderr


def test_they_are_listed(lors: Callable[..., Result], config: Path) -> None:
    assert re.search(r"^  tempered +score = ", lors("methods").stdout, re.MULTILINE)
    schema = json.loads(lors("schema").stdout)["$defs"]
    assert "tempered" in schema["Prune"]["properties"]["method"]["enum"]
    assert schema["Train"]["properties"]["start"]["exclusiveMinimum"] == 0

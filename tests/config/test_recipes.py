"""A recipe sets what a config leaves out, and means the same later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli import adapters, pruning, yaml12
from lors_cli.config import recipes
from lors_cli.config.dump import as_yaml
from lors_cli.config.load import load
from lors_cli.config.recipes import Preset, Recipe
from lors_cli.config.reference import json_schema
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError
from lors_cli.run import manifest

LEAST = """
model: m
output_dir: o
recipe: best
prune: {sparsity: 2:4, calibration: {dataset: python-topics}}
train: {dataset: python-topics}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(LEAST)
    return path


def at(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_valid_with_every_method_and_sets_all_that_it_says(file: Path, name: str) -> None:
    known = {"prune": [*pruning.all_methods()], "train": [*adapters.METHODS]}
    for preset in recipes.RECIPES[name].presets:
        assert set(preset.methods) <= set(known[preset.section])
        for method in preset.methods or [preset.values.get("method")]:
            needs = [f"{preset.section}.method={method}"] if method else []
            needs += ["prune.mask=a.safetensors", "prune.sparsity=null"] if method == "from_mask" else []
            config = load(file, [*needs, f"recipe={name}"])
            for key, value in preset.values.items():
                assert at(config, f"{preset.section}.{key}") == value
    for method in adapters.METHODS:
        assert load(file, [f"recipe={name}", f"train.method={method}"]).train
    for method in pruning.STRUCTURED:
        changes = [f"prune.method={method}", "prune.sparsity=null", "prune.ratio=0.5"]
        assert load(file, [f"recipe={name}", *changes, "train.method=lora"]).prune


def test_best_is_recorded_as_the_newest_and_an_older_one_stays_what_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(file, [])
    assert before.recipe == recipes.NEWEST == "best-1"
    later = Recipe("2030-01-01", (Preset("prune", {"method": "magnitude"}), Preset("train", {"method": "spp"})))
    monkeypatch.setitem(recipes.RECIPES, "best-2", later)
    monkeypatch.setattr(recipes, "NEWEST", "best-2")
    filled, _ = recipes.fill(yaml12.parse(LEAST))
    assert (filled["recipe"], filled["prune"]["method"]) == ("best-2", "magnitude")
    assert load(file, ["recipe=best-1"]) == before


def test_what_is_written_wins_and_a_null_takes_a_key_out_of_the_recipe(file: Path) -> None:
    assert load(file, ["train.learning_rate=1e-5"]).train.learning_rate == 1e-5  # type: ignore[union-attr]
    raw = {"recipe": "best-1", "prune": {"method": None, "update": "none"}}
    filled, origins = recipes.fill(raw)
    assert filled == raw  # the update is set, and without a method the others of it are unknown; no section is added
    assert origins == {}
    filled, origins = recipes.fill({"recipe": "best-1", "train": {"learning_rate": 1e-5}})
    assert filled["train"] == {"method": "lors", **recipes.LORS_1, "learning_rate": 1e-5}
    assert origins == dict.fromkeys(
        (f"train.{key}" for key in filled["train"] if key != "learning_rate"), "recipe best-1"
    )


@pytest.mark.parametrize("change", ["train.learning_rate=null", "train.learning_rate=1e-5", "train.method=spp"])
def test_a_config_that_was_dumped_loads_to_the_same(file: Path, tmp_path: Path, change: str) -> None:
    config = load(file, [change])
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(recipes.written(config)))
    assert load(again, []) == config


def test_a_mistake_in_the_name_is_the_only_one_that_is_told(file: Path) -> None:
    with pytest.raises(RequestError) as caught:
        load(file, ["recipe=bets-1"])
    (problem,) = caught.value.problems
    assert (problem.key, problem.remedy[:23]) == ("recipe", "did you mean 'best-1'?;")
    with pytest.raises(RequestError, match="there is neither prune nor train"):
        load(file, ["prune=null", "train=null"])


def test_a_key_of_the_recipe_that_does_not_fit_names_the_recipe_and_the_remedy_works(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = (Preset("train", {"method": "spp", "init": "gradient"}),)
    monkeypatch.setitem(recipes.RECIPES, "best-1", Recipe("2026-01-02", presets))
    with pytest.raises(RequestError) as caught:
        load(file, ["prune=null"])
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == ("recipe best-1", "train.init")
    assert "write train.init: null, against the recipe" in problem.remedy
    assert load(file, ["prune=null", "train.init=null"]).train


def test_an_editor_misses_a_key_that_recipes_set_only_where_there_is_no_recipe() -> None:
    schema = json_schema()
    assert schema["if"] == {"not": {"required": ["recipe"]}}
    assert schema["then"]["properties"] == {"prune": {"required": ["method"]}, "train": {"required": ["method"]}}
    assert "dataset" in schema["$defs"]["Train"]["required"]
    assert not any("method" in schema["$defs"][name]["required"] for name in ("Prune", "Train"))


def test_what_a_recipe_sets_is_shown_before_and_recorded_afterwards(
    lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(recipe="best", prune__method=..., train__method=..., train__learning_rate=1e-2)
    shown = lors("run", config, "--dry-run").stdout
    assert "prune: recipe best-1 of 2026-11-27: method wanda, update least_squares\n" in shown
    assert (
        "train: recipe best-1 of 2026-11-27: method lors, init random, schedule cosine, also norms,"
        " also_learning_rate 0.001; not its learning_rate" in shown
    )
    assert "recipe best" not in lors("run", write_config(), "--dry-run").stdout
    config = write_config(recipe="best", prune__method=..., train__method=..., train__max_steps=1)
    lors("prune", config)
    made = manifest.read(tmp_path / "run/pruned")
    assert made
    assert (made.config["recipe"], made.config["prune"]["method"]) == ("best-1", "wanda")
    assert 'recipe: "best-1"' in (tmp_path / "run/pruned/README.md").read_text()
    same = write_config(prune__update="least_squares")  # without the recipe: there is nothing to do
    assert "nothing to do" in lors("prune", same).stderr

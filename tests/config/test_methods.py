"""Keys of methods: generated from the registries, in the order and with the checks that the rows declare."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lors_cli import adapters, pruning
from lors_cli.config.align import Align
from lors_cli.config.load import load
from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.config.schema import Config
from lors_cli.config.train import Train
from lors_cli.options import Options, option
from lors_cli.pruning.rows import Method

PRUNE = {"sparsity": 0.5, "calibration": {"dataset": "python-topics"}}
TRAIN = {"dataset": "python-topics"}


class Knobs(Options):
    """Two options, one of which a config has to give."""

    strength: float = option(..., "how strongly it prunes", gt=0)
    rounds: int = option(2, "how often", ge=1)


@pytest.fixture
def knobby(monkeypatch: pytest.MonkeyPatch) -> None:
    row = pruning.METHODS["magnitude"]
    monkeypatch.setitem(pruning.METHODS, "knobby", type(row)(row.module, "-", "-", options=Knobs))


def prune(**settings: Any) -> Prune:
    return complete(Prune).model_validate({**PRUNE, **settings})


def train(**settings: Any) -> Train:
    return complete(Train).model_validate({**TRAIN, **settings})


def test_a_section_has_the_options_of_all_methods_and_a_method_its_own() -> None:
    section = prune(method="sparsegpt", damping=0.1)
    dumped = section.model_dump(mode="json")
    for row in pruning.all_methods().values():
        for name, field in row.options.model_fields.items():
            assert dumped[name] == (0.1 if name == "damping" else None if field.is_required() else field.default)
    assert section.options().arguments() == {"damping": 0.1, "block_size": 128}
    assert (section.option("damping"), section.option("exponent")) == (0.1, None)


def test_a_method_that_is_registered_later_has_its_keys(knobby: None, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{model: m, output_dir: o, prune: {method: knobby, sparsity: 0.5, strength: 3}}")
    config = load(path, [])
    assert isinstance(config, Config)
    assert config.prune is not None
    assert config.prune.options() == Knobs(strength=3)
    properties = complete(Config).model_json_schema()["$defs"]["Prune"]["properties"]
    assert "knobby" in properties["method"]["enum"]
    assert properties["rounds"]["description"] == "knobby: how often"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "knobby"}, "strength: how strongly it prunes"),
        ({"method": "knobby", "strength": 0}, "greater than 0"),
        ({"method": "magnitude", "rounds": 2}, "no rounds, because magnitude does not have this option"),
    ],
)
def test_its_options_are_checked(knobby: None, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        prune(**settings)
    assert prune(method="magnitude").option("strength") is None


def test_an_option_is_declared_in_one_way(knobby: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Options):
        rounds: int = option(3, "how often", ge=1)

    row = pruning.METHODS["knobby"]
    monkeypatch.setitem(pruning.METHODS, "other", type(row)(row.module, "-", "-", options=Other))
    with pytest.raises(TypeError, match="other and knobby declare the option rounds differently"):
        complete(Prune)


def test_without_a_change_of_the_registry_the_class_is_the_same() -> None:
    assert complete(Config) is complete(Config)


@pytest.mark.parametrize("method", adapters.METHODS)
def test_what_means_not_at_all_may_be_said_for_any_method(method: str) -> None:
    off = {"dropout": 0, "adapter_checkpointing": False, "merge_cache": "off", "merge_rounding": "nearest"}
    assert train(method=method, **off).options()
    assert train(method=method, merge_cache="auto").options()


def test_options_are_of_the_formulation() -> None:
    assert train(method="spp", dropout=0.1).option("dropout") == 0.1
    assert train(method="spp", formulation="columns", dropout=0.1).option("dropout") == 0.1
    with pytest.raises(ValidationError, match=r"dropout: 0\.0, because spp \(SPPFused\) computes"):
        train(method="spp", formulation="merged", dropout=0.1)
    stochastic = train(method="lors", merge_rounding="stochastic").options().arguments()
    assert stochastic == {"stochastic": True, "quantization_aware": False}


def test_align_has_the_same_options_and_is_full_if_left_out() -> None:
    section = complete(Align).model_validate(TRAIN)
    assert (section.method, section.options()) == ("full", Options())
    with pytest.raises(ValidationError, match="method with rank"):
        complete(Align).model_validate({**TRAIN, "rank": 4})


@pytest.mark.parametrize("method", adapters.METHODS)
def test_the_row_says_of_an_adapter_what_its_class_is(method: str) -> None:
    from lors_cli.adapters.base import LowRankAdapter

    row = adapters.METHODS[method]
    for formulation in row.formulations.values():
        adapter = formulation.adapter
        assert adapter.__name__ == formulation.class_name
        assert adapter.bases == formulation.bases
        assert issubclass(adapter, LowRankAdapter) == row.low_rank
        assert (adapter.shapes(2, 2, 1) != adapter.shapes(2, 2, 2)) == row.has_rank


@pytest.mark.parametrize(
    ("key", "row", "said"),
    [
        ("prune.method", Method("lors_cli.pruning.wnda", "-", "-"), "cannot be imported"),
        ("prune.method", Method("lors_cli.pruning.owl", "-", "-"), "no function prune"),
        ("prune.method", Method("lors_cli.pruning.wanda", "-", "-", options=Knobs), "the option strength, which no"),
        ("prune.method", Method("lors_cli.pruning.wanda", "-", "-", statistic="norms"), "the statistic 'norms'"),
        ("prune.method", Method("lors_cli.pruning.wanda", "-", "-", options=pruning.PermuteOptions), "function score"),
    ],
)
def test_a_wrong_row_is_found_before_any_work(
    monkeypatch: pytest.MonkeyPatch, lors: Any, write_config: Any, key: str, row: Method, said: str
) -> None:
    monkeypatch.setitem(pruning.METHODS, "wrong", row)
    strength = {"prune__strength": 1} if row.options is Knobs else {}
    refused = lors("run", write_config(prune__method="wrong", **strength), "--dry-run", status=2).stderr
    assert key in refused
    assert said in refused


@pytest.mark.parametrize(
    ("formulation", "said"),
    [
        (adapters.Formulation("lors_cli.adapters.lors:LoRz"), "cannot be imported"),
        (adapters.Formulation("lors_cli.adapters.lors:LoRS"), "where LoRS has"),
        (
            adapters.Formulation("lors_cli.adapters.lors:LoRS", Knobs, ("dense", "packed", "int4")),
            "which LoRS does not take",
        ),
    ],
)
def test_a_wrong_formulation_is_found_before_any_work(
    monkeypatch: pytest.MonkeyPatch, lors: Any, write_config: Any, formulation: adapters.Formulation, said: str
) -> None:
    monkeypatch.setitem(adapters.METHODS["lors"].formulations, "wrong", formulation)
    strength = {"train__strength": 1} if formulation.options is Knobs else {}
    config = write_config(train__formulation="wrong", **strength)
    assert said in lors("run", config, "--dry-run", status=2).stderr


@pytest.mark.parametrize("name", ["calibration", "changed"])  # a key of the section, and a method of its class
def test_an_option_is_not_called_as_something_else_of_the_section(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fields: Any = {"__annotations__": {name: int}, name: option(1, "whatever")}
    row = Method("lors_cli.pruning.wanda", "-", "-", options=type("Taken", (Options,), fields))
    monkeypatch.setitem(pruning.METHODS, "taken", row)
    with pytest.raises(TypeError, match=f"must not be called {name}"):
        complete(Prune)


def test_all_rows_are_right() -> None:
    for rows in (pruning.all_methods(), pruning.PROFILES, pruning.REPAIRS, pruning.UPDATES):
        assert {name: pruning.mistake(row) for name, row in rows.items()} == dict.fromkeys(rows)
    for method in adapters.METHODS.values():
        assert [formulation.mistake() for formulation in method.formulations.values()] == [None] * len(
            method.formulations
        )

from typing import Any

import pytest
import torch
from torch import nn

from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.errors import RequestError
from lors_cli.sequential.recipe import Recipe, build
from lors_cli.sparsity.pattern import Pattern

# (inputs, outputs) of the linears of a block
PLACES = {"self_attn.q_proj": (8, 8), "mlp.up_proj": (8, 24), "mlp.down_proj": (24, 8)}
BLOCKS = 4


def linears(places: dict[str, tuple[int, int]] = PLACES, blocks: int = BLOCKS) -> dict[str, nn.Linear]:
    with torch.device("meta"):
        return {
            f"model.layers.{block}.{place}": nn.Linear(*shape)
            for block in range(blocks)
            for place, shape in places.items()
        }


def section(**settings: Any) -> Prune:
    calibration = {"dataset": "python-topics"}
    return complete(Prune).model_validate({"method": "wanda", "sparsity": 0.5, "calibration": calibration, **settings})


def recipe(*overrides: dict[str, Any], **settings: Any) -> Recipe:
    return build(section(overrides=list(overrides), **settings), linears(), None)


def asked(made: Recipe) -> dict[str, str]:
    return {name.removeprefix("model.layers."): str(pattern) for name, pattern in made.targets.items()}


def test_without_overrides_all_get_the_same() -> None:
    made = recipe()
    assert made.targets == dict.fromkeys(linears(), Pattern(0.5))
    assert made.sizes == {name: linear.weight.numel() for name, linear in linears().items()}
    assert made.follows_profile == set()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([("*.down_proj", 0.4)], {"down": "0.4"}),
        ([("down_proj", 0.4)], {"down": "0.4"}),
        ([("mlp.down_proj", "2:4"), ("up_proj", 0.25)], {"down": "2:4", "up": "0.25"}),
        ([("*", 0.3), ("*.down_proj", 0.4)], {"q": "0.3", "up": "0.3", "down": "0.4"}),
        ([("*.down_proj", 0.4), ("*", 0.3)], {"q": "0.3", "up": "0.3", "down": "0.3"}),
        ([("*.down_proj", None)], {"down": None}),
        ([("*.down_proj", None), ("*.mlp.*", 0.4)], {"down": "0.4", "up": "0.4"}),
        ([("*.mlp.*", 0.4), ("*.down_proj", None)], {"down": None, "up": "0.4"}),
    ],
)
def test_the_last_match_counts(overrides: list[tuple[str, object]], expected: dict[str, str | None]) -> None:
    made = recipe(
        *(
            {"match": match, "skip": True} if value is None else {"match": match, "sparsity": value}
            for match, value in overrides
        )
    )
    wanted = {}
    for name in linears():
        value = expected.get(name.rsplit(".", 1)[-1].removesuffix("_proj"), "0.5")
        if value is not None:
            wanted[name.removeprefix("model.layers.")] = value
    assert asked(made) == wanted


def test_a_glob_matches_the_whole_name_of_one_block() -> None:
    made = recipe({"match": "model.layers.0.*", "skip": True}, {"match": "model.layers.2.mlp.up_proj", "sparsity": 0.1})
    assert {name[0] for name in asked(made)} == {"1", "2", "3"}
    assert [name for name, value in asked(made).items() if value != "0.5"] == ["2.mlp.up_proj"]


@pytest.mark.parametrize("pattern", ["down_prj", "*.down_prj", "model.layer.0.*", "layers.9.mlp.up_proj", "down"])
def test_an_override_that_matches_nothing_names_the_near_name(pattern: str) -> None:
    with pytest.raises(RequestError) as caught:
        recipe({"match": "*.up_proj", "skip": True}, {"match": pattern, "sparsity": 0.4})
    (problem,) = caught.value.problems
    assert problem.key == "prune.overrides[1].match"
    assert repr(pattern) == problem.got
    if "prj" in pattern:
        assert problem.remedy == "did you mean 'down_proj'?"
    assert "proj" in problem.remedy


def test_all_skipped_is_an_error() -> None:
    with pytest.raises(RequestError, match="at least one linear left to prune"):
        recipe({"match": "*.mlp.*", "skip": True}, {"match": "q_proj", "skip": True})
    assert len(recipe({"match": "*", "skip": True}, {"match": "q_proj", "sparsity": 0.5}).targets) == BLOCKS


@pytest.mark.parametrize(
    ("overrides", "sparsity"),
    [([], "8:16"), ([{"match": "down_proj", "sparsity": "8:16"}], 0.5), ([{"match": "*", "sparsity": "2:5"}], 0.5)],
)
def test_n_of_m_that_does_not_divide_names_a_linear(overrides: list[dict[str, Any]], sparsity: object) -> None:
    with pytest.raises(RequestError, match=r"M dividing the inputs .*_proj has (8|24)"):
        recipe(*overrides, sparsity=sparsity)


def test_n_of_m_that_does_not_divide_a_skipped_linear_is_fine() -> None:
    made = recipe(
        {"match": "q_proj", "skip": True}, {"match": "up_proj", "sparsity": 0.5}, sparsity="1:3"
    )  # only down_proj, of 24 inputs, has 1:3
    assert set(asked(made).values()) == {"0.5", "1:3"}


@pytest.mark.parametrize(
    "override", [{"match": "x"}, {"match": "x", "skip": True, "sparsity": 0.5}, {"match": "x", "sparsity": 1.5}]
)
def test_an_override_says_one_thing(override: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either sparsity or skip|a fraction of zeros"):
        section(overrides=[override])


def level(pattern: Pattern | None) -> float:
    assert pattern
    assert pattern.m is None
    return pattern.sparsity


def spread(made: Recipe, *shares: float) -> dict[str, float]:
    done = made.with_profile(list(shares), "model.layers")
    assert done.targets.keys() == made.targets.keys()
    return {name: level(pattern) for name, pattern in done.targets.items()}


SHARES = [[0.1, 0.02, 0.3, 0.05], [0.0, 0.0, 0.0, 1e-6], [0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.2, 0.1]]


def test_a_profile_gives_each_block_its_level() -> None:
    made = recipe(sparsity=0.7, profile="owl", profile_range=0.1)
    assert made.follows_profile == set(linears())
    expected = [0.65, 0.8, 0.6, 0.75]
    for name, got in spread(made, 0.3, 0.0, 0.4, 0.1).items():
        assert got == pytest.approx(expected[int(name.split(".")[2])], abs=1e-12)


@pytest.mark.parametrize("shares", SHARES)
def test_the_mean_over_what_follows_is_the_asked_one(shares: list[float]) -> None:
    """Overrides make the blocks unequal; what they set is outside the profile, and outside its mean."""
    own: list[dict[str, Any]] = [
        {"match": "model.layers.0.mlp.*", "sparsity": 0.9},
        {"match": "model.layers.1.self_attn.q_proj", "skip": True},
        {"match": "model.layers.2.mlp.down_proj", "sparsity": "2:4"},
        {"match": "model.layers.3.mlp.up_proj", "sparsity": 0.6},  # the asked one, but said: it stays
    ]
    made = recipe(*own, sparsity=0.6, profile="owl", profile_range=0.15)
    done = made.with_profile(list(shares), "model.layers")
    fixed = {name for name in made.targets if name not in made.follows_profile}
    assert {name.removeprefix("model.layers.") for name in fixed} == {
        "0.mlp.up_proj",
        "0.mlp.down_proj",
        "2.mlp.down_proj",
        "3.mlp.up_proj",
    }
    assert all(done.targets[name] == made.targets[name] for name in fixed)
    zeros = sum(level(done.targets[name]) * made.sizes[name] for name in made.follows_profile)
    assert zeros / sum(made.sizes[name] for name in made.follows_profile) == pytest.approx(0.6, abs=1e-9)
    # within a block all are alike, and blocks differ as the shares do
    by_block = {int(name.split(".")[2]): level(done.targets[name]) for name in made.follows_profile}
    assert len({(name.split(".")[2], level(done.targets[name])) for name in made.follows_profile}) == len(by_block)
    low, high = min(shares), max(shares)
    for block, got in by_block.items():
        assert by_block[0] - got == pytest.approx((shares[block] - shares[0]) / (high - low) * 0.3, abs=1e-12)


def test_a_block_outside_the_profile_cannot_make_it_unreachable() -> None:
    made = recipe({"match": "model.layers.3.*", "sparsity": 0.2}, profile="owl", profile_range=0.49)
    levels = spread(made, 1, 1, 1, 0)
    assert {got for name, got in levels.items() if ".3." not in name} == {0.5}
    assert {got for name, got in levels.items() if ".3." in name} == {0.2}


def test_a_profile_that_has_nothing_to_set_is_an_error() -> None:
    with pytest.raises(RequestError, match="linears left for the profile to set"):
        recipe({"match": "*", "sparsity": 0.4}, profile="owl")


@pytest.mark.parametrize(("sparsity", "width"), [(0.5, 0.5), (0.05, 0.08), (0.95, 0.06), ("2:4", 0.08)])
def test_a_range_that_no_profile_can_have_is_refused(sparsity: object, width: float) -> None:
    with pytest.raises(ValueError, match=r"profile"):
        section(sparsity=sparsity, profile="owl", profile_range=width)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "magnitude"}, []),
        ({"method": "wanda"}, ["input_norm"]),
        ({"method": "sparsegpt", "repair": "dsnot"}, ["hessian", "input_moments"]),
        ({"method": "magnitude", "repair": "dsnot"}, ["input_moments"]),
        ({"method": "from_mask", "mask": "m.safetensors"}, []),
        ({"method": "from_mask", "mask": "m.safetensors", "repair": "dsnot"}, ["input_moments"]),
    ],
)
def test_what_calibration_gathers(settings: dict[str, Any], expected: list[str]) -> None:
    assert recipe(**settings).statistics == expected

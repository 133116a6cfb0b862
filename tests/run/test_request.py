from collections.abc import Callable
from pathlib import Path

from lors_cli.config.load import load
from lors_cli.run import request
from lors_cli.run.manifest import Request


def test_only_what_decides_the_result_counts(write_config: Callable[..., Path]) -> None:
    config = load(write_config(train__save_steps=7, train__base="packed", train__input="somewhere"), [])
    assert config.train
    assert config.eval
    training = request.settings(config, config.train)
    assert (training["seed"], training["rank"], training["method"]) == (0, 4, "lors")
    assert not {"input", "base", "save_steps", "micro_batch_size"} & training.keys()
    assert "batch_size" in training  # of a training it counts, of an evaluation it does not
    assert not {"batch_size", "offline"} & request.settings(config, config.eval).keys()
    nf4 = load(write_config(train__base="nf4", train__method="lora"), [])
    assert nf4.train
    assert request.settings(nf4, nf4.train)["base"] == "nf4"  # not the same numbers


def test_a_key_that_did_not_exist_yet_counts_as_its_default(write_config: Callable[..., Path]) -> None:
    config = load(write_config(), [])
    assert config.prune
    now = request.settings(config, config.prune)
    recorded = Request(settings={key: value for key, value in now.items() if key not in ("damping", "exponent")})
    assert request.completed(recorded, now, config.prune).settings == now
    other = {**now, "damping": 0.5}
    assert request.completed(recorded, other, config.prune).settings != other


def test_each_difference_is_named_with_both_values() -> None:
    old = {"settings": {"rank": 4, "data": {"digest": "a"}}, "inputs": {"pruned": "x"}}
    new = {"settings": {"rank": 8, "data": {"digest": "a"}}, "inputs": {"pruned": "y"}}
    problems = request.differences("train", old, new, "runs/a/adapter was made")
    assert [problem.key for problem in problems] == ["train: inputs.pruned", "train: rank"]
    assert problems[1].expected == "4, with which runs/a/adapter was made"
    assert problems[1].got == "8"
    assert request.differences("train", old, old, "") == []

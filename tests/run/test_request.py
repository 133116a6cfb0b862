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


def test_null_in_a_section_means_the_value_of_the_whole_config(write_config: Callable[..., Path]) -> None:
    def training(*changes: str) -> dict[str, object]:
        config = load(write_config(), list(changes))
        assert config.train
        return request.settings(config, config.train)

    assert training()["dtype"] == "float32"
    assert training() == training("train.dtype=null") == training("train.dtype=float32")
    assert training("dtype=bfloat16") != training()
    assert training("dtype=bfloat16", "train.dtype=float32") == training()
    older = Request(settings={**training(), "dtype": None})
    assert request.inherited(older, {"dtype": "float32"}).settings == training()
    assert request.inherited(older, {"dtype": "bfloat16"}).settings == training("dtype=bfloat16")


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
    assert problems[1].expected == "8, as asked now"
    assert problems[1].got == "4, with which runs/a/adapter was made"
    assert request.differences("train", old, old, "") == []


def test_what_counts_by_its_content_may_lie_elsewhere(
    write_config: Callable[..., Path], jsonl: Callable[..., Path]
) -> None:
    here = str(jsonl([{"text": "a"}]))
    other = str(jsonl([{"text": "a"}], "other.jsonl"))

    def training(path: str, digest: str, **changes: object) -> Request:
        config = load(write_config(train__dataset={"path": path, **changes}, train__distill={"teacher": path}), [])
        assert config.train
        data = {"train.dataset": {"digest": digest}}
        return Request(settings={**request.settings(config, config.train), "data": data})

    recorded = training(here, "d")
    for now, same in (
        (training(other, "d"), True),
        (training(other, "e"), False),
        (training(other, "d", field="words"), False),
    ):
        assert (request.completed(recorded, now.settings, None).settings == now.settings) == same
    assert recorded.settings["dataset"]["path"] == here  # what was recorded is not touched

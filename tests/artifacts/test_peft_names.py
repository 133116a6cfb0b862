"""The names of PEFT's options and targets, as PEFT has them."""

from itertools import product

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from lors_cli.artifacts import peft_options
from lors_cli.errors import RequestError


def test_every_option_of_peft_is_understood_where_it_is_off_and_refused_where_it_is_not_known() -> None:
    config = {**LoraConfig().to_dict(), "task_type": "CAUSAL_LM"}
    peft_options.check(config, "merge.adapter", "file")
    for option in (config | {"of_a_later_version": None}).keys() - peft_options.DESCRIPTIVE:
        with pytest.raises(RequestError, match=option):
            peft_options.check({**config, option: "something new"}, "merge.adapter", "file")


def test_the_targets_are_pefts() -> None:
    names = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head"]
    modules = [["q_proj", "up_proj"], r".*\.1?\d\.self.*", [names[1]], ["proj"]]
    narrowed = product([None, 11, [0, 3]], [None, "layers", ["h", "layers"]])
    for name, wanted, exclude, (layers, pattern) in product(names, modules, [None, ["up_proj"], ".*q_proj"], narrowed):
        options = {"layers_to_transform": layers, "layers_pattern": pattern}
        if layers is None or isinstance(wanted, str):
            options = {}
        config = LoraConfig(target_modules=wanted, exclude_modules=exclude, **options)
        ours = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        assert peft_options.targets(ours, name) == bool(check_target_module_exists(config, name)), (name, ours)

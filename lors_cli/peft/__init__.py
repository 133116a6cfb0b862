"""LoRS, SPP and SQFT as methods of PEFT: importing this module registers them with PEFT's own registry.

Everything that takes a PEFT config then trains, saves, loads and merges them: ``get_peft_model``, ``PeftModel``,
transformers' Trainer, TRL. A layer here only holds adapters of `lors_cli.adapters` in the way that PEFT expects, so its
numbers are those of `lors_cli.api.attach`. Files have the names of our own adapter directories. A PEFT without this
import refuses them, because it does not know their type.

PEFT's registry is an enum, which gets a member for each method. It needs PEFT 0.21, where a method says by itself how
its tensors are named in files.
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from lors_cli.adapters import METHODS
from lors_cli.peft.config import Config, LorsConfig, SPPConfig, SQFTConfig
from lors_cli.peft.model import MaskedModel

__all__ = ["LorsConfig", "SPPConfig", "SQFTConfig"]


def _register(config: type[Config]) -> None:
    """Make a method one of PEFT's, unless it is one already."""
    if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        raise ImportError("lors_cli.peft needs PEFT 0.21 or later: pip install -U peft")
    row = METHODS[config.method]
    if row.peft_type not in PeftType.__members__:
        member: Any = str.__new__(PeftType, row.peft_type)
        member._name_ = member._value_ = row.peft_type
        type.__setattr__(PeftType, row.peft_type, member)
        PeftType._member_names_.append(row.peft_type)
        PeftType._member_map_[row.peft_type] = PeftType._value2member_map_[row.peft_type] = member
    if row.peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        prefix = f"{row.adapter.parameter_names[0].partition('_')[0]}_"
        model_class = type(f"{config.__name__.removesuffix('Config')}Model", (MaskedModel,), {"prefix": prefix})
        register_peft_method(name=config.method, config_cls=config, model_cls=model_class, prefix=prefix)


for _config in (LorsConfig, SPPConfig, SQFTConfig):
    _register(_config)

"""The configs of our methods for PEFT."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig, PeftConfig
from peft.utils import PeftType

from lors_cli.adapters import METHODS, Formulation
from lors_cli.adapters.base import Checkpointing
from lors_cli.artifacts import peft_options
from lors_cli.errors import nearest

OPTIONS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "formulation",
    "adapter_checkpointing",
)
LORA = LoraConfig().to_dict()  # a value that is its default there asks for nothing


@dataclass(init=False)
class Config(PeftConfig):
    """What the configs of all methods have in common.

    Attributes:
        r: the rank of the update.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: spp: the probability of dropping an input of the update.
        target_modules: as PEFT reads them: last parts of names, a regular expression, or "all-linear"; the linears of
            the decoder blocks that have zeros if left out.
        exclude_modules: those that are not adapted, as PEFT reads them.
        formulation: how to compute the method; its first if left out.
        adapter_checkpointing: sqft, spp: whether backward recomputes the method's own tensors.
        zeros: where the adapted linears have zeros, as a digest; noted when adapters are added, and compared when they
            are loaded.

    Raises:
        ValueError: an option is given that the method does not have, or a value that it cannot have.

    """

    method: ClassVar[str]

    r: int = 16
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: set[str] | str | None = None
    exclude_modules: set[str] | str | None = None
    formulation: str | None = None
    adapter_checkpointing: Checkpointing = False
    zeros: str | None = None

    def __init__(self, **options: Any) -> None:
        known: dict[str, Any] = {field.name: field.default for field in fields(self)}
        self._read_from: Path | None = None  # the directory that it was read from, until its tensors are read too
        self._zeros_in_file: str | None = None
        for name, value in (known | options).items():
            if name in known:
                named = name in ("target_modules", "exclude_modules") and isinstance(value, list | tuple)
                setattr(self, name, set(value) if named else value)
            elif value != LORA.get(name) and not (peft_options.is_off(value) and peft_options.is_off(LORA.get(name))):
                raise ValueError(self._foreign(name, value))
        self.peft_type = getattr(PeftType, METHODS[self.method].peft_type)
        self._check()
        super().__post_init__()

    def _foreign(self, name: str, value: Any) -> str:
        """Why an option that the method does not have is refused."""
        if name == peft_options.ON_GRID:
            return f"{name}={value!r}: PEFT does not round to the grid of a quantised model; load it with lors_cli.api"
        return f"{name}={value!r}: {self.method} does not have this option ({nearest(name, OPTIONS)})"

    def _check(self) -> None:
        ways, dropout = METHODS[self.method].formulations, self.lora_dropout
        if self.formulation not in (None, *ways):
            raise ValueError(f"formulation={self.formulation!r}: {nearest(str(self.formulation), list(ways))}")
        if self.task_type not in (None, "CAUSAL_LM"):
            raise ValueError(f"task_type={self.task_type!r}: {self.method} adapts causal language models (CAUSAL_LM)")
        for name, expected, fits in (
            ("r", "a whole number of at least 1", type(self.r) is int and self.r >= 1),
            (
                "lora_alpha",
                "a number above 0",
                type(self.lora_alpha) in (int, float) and 0 < self.lora_alpha < math.inf,
            ),
            ("lora_dropout", "a number from 0 to below 1", type(dropout) in (int, float) and 0 <= dropout < 1),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if self.target_modules in (set(), ""):
            raise ValueError("target_modules: names or a regular expression, got none; leave it out for all with zeros")
        for name, option, value in (
            ("lora_dropout", "dropout", dropout),
            ("adapter_checkpointing", "adapter_checkpointing", self.adapter_checkpointing),
        ):
            if value and option not in self.way.options.model_fields:
                raise ValueError(f"{name}={value!r}: {self.method} ({self.way.class_name}) does not have this option")

    @property
    def way(self) -> Formulation:
        """How the method is computed."""
        return METHODS[self.method].formulation(self.formulation)

    def to_dict(self) -> dict[str, Any]:
        """What adapter_config.json says, with names in order."""
        return {name: sorted(v) if isinstance(v, set) else v for name, v in super().to_dict().items()}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """The config in a directory; it remembers where it is from, so that its model can be compared."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        directory = Path(pretrained_model_name_or_path, subfolder or "")
        config._read_from = directory if directory.is_dir() else None
        config._zeros_in_file = config.zeros
        return config


class LorsConfig(Config):
    """LoRS: W' = (W + s BA) * M."""

    method = "lors"


class SPPConfig(Config):
    """SPP: W' = W + s W * repeat(alpha, R/r) * beta."""

    method = "spp"


class SQFTConfig(Config):
    """SQFT: W' = W + s (BA) * M."""

    method = "sqft"

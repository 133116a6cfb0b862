"""The section ``align:``, which trains by the keys of ``train:``."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from lors_cli import adapters
from lors_cli.config.fields import Fault
from lors_cli.config.train import Train
from lors_cli.options import OneOf


class Align(Train):
    """pruned model -> <output_dir>/aligned: continual pre-training before the adapters, merged at once (LoRAM)"""

    key: ClassVar[str] = "align"
    method: Annotated[str, OneOf(adapters.METHODS)] = Field(
        "full",
        description="full trains every weight of the linears; lors and sqft, and lora for structured models, train"
        " low-rank updates",
    )

    def faults(self) -> Iterator[Fault]:
        """Those of a training, and a rank where the default method does not have one."""
        if "rank" in self.model_fields_set and "method" not in self.model_fields_set:
            expected = "method with rank: left out it is full, which does not have a rank and takes far more memory"
            yield Fault("method", expected, "add method: lors, or leave rank out")
            return
        for key in ("adapter", "resume_from", "save_optimizer"):
            if getattr(self, key):
                expected = f"no {key}: an alignment starts from the pruned model and leaves a model, not an adapter"
                yield Fault(key, expected, drop=(key,))
        yield from super().faults()

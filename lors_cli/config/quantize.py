"""The section ``quantize:``."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lors_cli import quantization
from lors_cli.config.fields import Fault
from lors_cli.config.grid import GridSection
from lors_cli.config.methods import Classes, MethodSection
from lors_cli.config.prune import Calibration
from lors_cli.options import OneOf, Options


class Quantize(GridSection, MethodSection):
    """pruned or dense model -> <output_dir>/quantized, in whole numbers of a few bits; zeros stay zeros"""

    input: str | None = Field(
        None, description="the model to quantise; the one that align or else prune makes, or the top-level `model`"
    )
    method: Annotated[str, OneOf(quantization.METHODS)] = Field(
        description="how weights are rounded; `lors methods` describes each"
    )
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="names, last parts of names or globs of the linears to quantise; every one of the blocks if left"
        " out",
    )
    calibration: Calibration | None = Field(None, description="the text for a method that looks at activations")
    states: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="where the calibration states are kept; auto takes the first of device, host, disk with room",
    )

    @classmethod
    def option_classes(cls) -> Classes:
        """The options of all methods."""
        return {name: method.options for name, method in quantization.METHODS.items()}

    @property
    def own_options(self) -> type[Options]:
        """The options of the method."""
        return quantization.METHODS[self.method].options

    def faults(self) -> Iterator[Fault]:
        """What does not fit the method."""
        if quantization.METHODS[self.method].statistic and self.calibration is None:
            expected = f"calibration: {{dataset: ...}}, because {self.method} looks at activations"
            yield Fault("calibration", expected, "add calibration: {dataset: ...}, with text like the model's use")
        yield from self.option_faults(self.option_classes(), self.method)

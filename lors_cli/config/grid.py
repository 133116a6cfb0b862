"""The grid that weights are rounded to, in the sections that name one."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lors_cli.config.fields import Section

if TYPE_CHECKING:
    from lors_cli.quantization.grid import Grid


class GridSection(Section):
    """The whole numbers that weights are rounded to."""

    bits: Annotated[int, Field(ge=3, le=8)] = Field(4, description="of each weight; vLLM serves 4 and 8")
    group_size: Annotated[int, Field(ge=1, le=10**6)] = Field(
        128, description="how many consecutive inputs of a row share a scale; it divides the inputs of every linear"
    )
    symmetric: bool = Field(
        True, description="whether zero is the middle of every grid; if not, each scale has a zero point beside it"
    )

    @property
    def grid(self) -> "Grid":
        """What is named."""
        from lors_cli.quantization.grid import Grid  # with torch, for which a mistake in a file need not wait

        return Grid(self.bits, self.group_size, self.symmetric)

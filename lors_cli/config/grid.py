"""The grid that weights are rounded to, in the sections that name one."""

from typing import Annotated

from pydantic import Field

from lors_cli.config.fields import Section


class GridSection(Section):
    """The whole numbers that weights are rounded to."""

    bits: Annotated[int, Field(ge=3, le=8)] = Field(4, description="of each weight; vLLM serves 4 and 8")
    group_size: Annotated[int, Field(ge=1, le=10**6)] = Field(
        128, description="how many consecutive inputs of a row share a scale; it divides the inputs of every linear"
    )
    symmetric: bool = Field(
        True, description="whether zero is the middle of every grid; if not, each scale has a zero point beside it"
    )

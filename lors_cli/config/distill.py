"""The section ``distill:`` of a training."""

from typing import Annotated

from pydantic import Field

from lors_cli.config.fields import Section


class Distill(Section):
    """Learn from a teacher's predictions too: weight * temperature^2 * KL(teacher || student) + (1 - weight) * loss"""

    teacher: str = Field("dense", description="dense (the config's model), or any model with the same vocabulary")
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the share of the divergence in the loss; the data's loss has the rest"
    )
    temperature: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0, description="what the logits of both models are divided by"
    )

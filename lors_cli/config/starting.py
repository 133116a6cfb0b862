"""What a training starts from, if that is an adapter."""

from collections.abc import Iterator
from typing import Any

from lors_cli.config.fields import Fault, without_effect


class Starting:
    """What a section says of its `adapter` and `resume_from`."""

    @property
    def starts_from(self) -> tuple[str, str] | None:
        """The key of the adapter that it starts from, and what is written there; None if it starts by `init`."""
        named = ((key, getattr(self, key)) for key in ("adapter", "resume_from"))
        return next(((key, value) for key, value in named if value is not None), None)

    def start_faults(self) -> Iterator[Fault]:
        """Keys that exclude each other, or that would be without effect."""
        section: Any = self  # the section whose fields these are
        if section.adapter and section.resume_from:
            yield Fault("resume_from", "adapter or resume_from, not both", drop=("adapter", "resume_from"))
        for key in ("init", "init_steps", "zero_init"):
            if section.starts_from and key in section.model_fields_set and getattr(section, key, None) is not None:
                yield without_effect(key, f"{section.starts_from[0]} says what the training starts from")
        if section.changed("resume_data") and not section.resume_from:
            yield without_effect("resume_data", "there is no resume_from", "add resume_from: DIRECTORY")
        if section.save_optimizer and section.eval_dataset and section.keep == "best":
            expected = "keep: last with save_optimizer and eval_dataset, because the optimiser's state is the last one"
            yield Fault("save_optimizer", expected, "write keep: last")

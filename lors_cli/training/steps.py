"""How many optimiser steps a training has, by its data and what the config says of its length."""

import math
from fractions import Fraction
from itertools import islice

from lors_cli.config.train import Train
from lors_cli.data.mixed import Mixed, shares
from lors_cli.data.samples import Held, Streamed
from lors_cli.errors import Problem, RequestError, request_error

EPOCHS = 3  # where a config gives no length


def count(section: Train, samples: Held | Streamed | Mixed, before: int = 0) -> int:
    """The optimiser steps of a training that takes its samples after those `before`.

    Raises:
        RequestError: the data are known to be fewer than asked for, or do not tell how many steps that is.

    """
    if isinstance(samples, Held):
        return _of_held(section, samples, before)
    if isinstance(samples, Streamed):
        return section.max_steps or _of_tokens(section, Fraction(_tokens_of_a_sample(section, samples)))
    steps = section.max_steps or _of_tokens(
        section,
        sum(
            share * _tokens_of_a_sample(section, part.samples)
            for part, share in zip(samples.parts, shares(section.weights), strict=True)
        ),
    )
    _check_lengths(section, samples, steps, before)
    return steps


def _of_tokens(section: Train, per_sample: Fraction | int) -> int:
    return math.ceil((section.max_tokens or 0) / (section.samples_per_step * per_sample))


def _of_held(section: Train, samples: Held, before: int) -> int:
    """Those over a single data set that is held."""
    if section.max_steps:
        needed = before + section.max_steps * section.samples_per_step
        if before and needed > len(samples) and not section.repeat:
            raise _seen(section, "max_steps", f"{max(len(samples) - before, 0)} samples that were not seen yet")
        return section.max_steps
    if section.max_tokens is None:
        return math.ceil((section.epochs or EPOCHS) * len(samples) / section.samples_per_step)
    there = samples.tokens
    unseen = islice(samples.starting_at(before), max(len(samples) - before, 0))
    left = sum(len(one["input_ids"]) for one in unseen) if before else there
    if section.max_tokens > left and not section.repeat:
        raise _seen(section, "max_tokens", f"{left} tokens{' that were not seen yet' if before else ''}")
    passes = (
        0 if before else (section.max_tokens - 1) // there
    )  # whole ones, each of which has all samples: only the last is counted
    seen, taken = passes * there, passes * len(samples)
    for sample in samples.starting_at(before + taken):
        seen += len(sample["input_ids"])
        taken += 1
        if seen >= section.max_tokens:
            break
    return math.ceil(taken / section.samples_per_step)


def _seen(section: Train, length: str, there: str) -> RequestError:
    """The refusal of a training that is longer than what is `there` of its data."""
    key, asked = f"{section.key}.{length}", getattr(section, length)
    expected = f"at most the {there} of {section.key}.dataset, or {section.key}.repeat: true"
    remedy = f"add data, lower {length}, or set {section.key}.repeat: true to start the data again"
    return request_error(key, expected, asked, remedy)


def _tokens_of_a_sample(section: Train, samples: Held | Streamed) -> Fraction:
    """The tokens of a sample: of data that are held the mean, of a stream as many as there is room for.

    Raises:
        RequestError: the samples of a stream need not be full.

    """
    if isinstance(samples, Held):
        return Fraction(samples.tokens, len(samples))
    if not samples.full:
        raise request_error(
            f"{section.key}.packing",
            "true for a stream of rows with max_tokens: only full samples tell how many steps that is",
            "false",
            f"set {section.key}.packing: true, or max_steps instead of max_tokens",
        )
    return Fraction(section.sequence_length)


def drawn(mixed: Mixed, samples: int) -> list[tuple[int, int]]:
    """Of each source, the fewest and the most that it gives of the first `samples` samples of a mixture."""
    exact = [share * samples for share in shares([part.weight for part in mixed.parts])]
    return [(math.floor(number), math.ceil(number)) for number in exact]


def _check_lengths(section: Train, mixed: Mixed, steps: int, before: int) -> None:
    """Refuse sources of a mixture that are held and too short, unless they may begin again."""
    per_step, problems = section.samples_per_step, []
    exact = shares(section.weights)
    earlier = f" after {before} samples" if before else ""
    for part, share, (_, most) in zip(mixed.parts, exact, drawn(mixed, before + steps * per_step), strict=True):
        if section.repeat or not isinstance(part.samples, Held) or len(part.samples) >= most:
            continue
        fit = math.floor((len(part.samples) / share - before) / per_step)
        fewer = f", or train for at most {fit} steps" if fit > 0 else ""
        problems.append(
            Problem(
                part.key,
                f"{most} samples, its share of {steps} steps of {per_step}{earlier}, or {section.key}.repeat: true",
                f"{part.path} with {len(part.samples)} samples",
                f"set {section.key}.repeat: true, which begins sources again that have ended, or add rows, or give this"
                f" one a smaller weight{fewer}",
            )
        )
    if problems:
        raise RequestError(*problems)

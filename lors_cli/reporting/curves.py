"""The plots of training: losses, and perplexity over its steps."""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from lors_cli.errors import LorsError
from lors_cli.reporting import lines, plots, text
from lors_cli.reporting.columns import PERPLEXITY
from lors_cli.reporting.lines import Value
from lors_cli.reporting.origin import DENSE, PRUNED, TUNED
from lors_cli.reporting.rows import Row
from lors_cli.reporting.table import Heading, Table
from lors_cli.run import manifest, seal

log = logging.getLogger(__name__)

MOST = 20  # curves in a picture
POINTS = 300  # in a curve; more cannot be seen
IN_TRAINING = {"linewidth": 0.8, "alpha": 0.6}
HELD_OUT = {"linewidth": 1.6, "marker": "o", "markersize": 3}
STEPS, RATIO = "max_steps", "ratio"
# Settings that models are drawn over: the name of the axis, the plot's, and what labels say of the setting.
OVER = {
    STEPS: ("optimiser steps", "Perplexity over training steps", rf" {STEPS}=\d+"),
    RATIO: ("share of the heads and channels that was removed", "Perplexity over the prune ratio", r" [\d.]+%"),
}
DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
LARGEST = 700.0  # nats; e to a larger power overflows
Log = dict[str, list[tuple[float, float, float]]]  # by kind of loss its points: step, tokens, loss
Curve = tuple[int, list[tuple[float, float]], dict[str, Any]]  # the number of a line of the table, points, style
Point = tuple[float, Value, int]  # the setting, perplexity, the number of a line


def of(table: Table) -> Iterator[tuple[str, str, str]]:
    """A title, an explanation and an SVG for each plot for which there are data."""
    yield from _logged(table)
    for heading in table.headings:
        if heading.key.kind == PERPLEXITY:
            for setting in OVER:
                yield from _measured(table, heading, setting)


def _logged(table: Table) -> Iterator[tuple[str, str, str]]:
    """The losses in training over the tokens, and the perplexity of the held-out rows over the steps."""
    paths: dict[Path, int] = {}
    for number, entry in enumerate(table.entries):
        for row in entry.line.rows:
            if (directory := row.origin.training_directory) and (path := directory / "training_log.jsonl").is_file():
                paths.setdefault(path, number)  # an adapter that was evaluated on two models was trained once
    logs = [(number, _read(path)) for path, number in islice(paths.items(), MOST)]
    more = plots.rest(len(paths) - MOST)
    losses = [
        (number, [(tokens, loss) for _, tokens, loss in log[name]], style)
        for number, log in logs
        for name, style in (("loss", IN_TRAINING), ("eval_loss", HELD_OUT))
    ]
    perplexities = [
        (number, [(step, math.exp(loss)) for step, _, loss in log["eval_loss"] if loss < LARGEST], HELD_OUT)
        for number, log in logs
    ]
    if plotted := _plotted(table, losses):
        figure, axes = plotted
        axes.set(xlabel="tokens seen", ylabel="loss, nats per token")
        axes.xaxis.set_major_formatter(lambda tokens, _: text.amount(tokens))
        yield "Loss", f"In training (thin) and held out (points).{more}", plots.finished(figure, axes)
    if plotted := _plotted(table, perplexities):
        figure, axes = plotted
        svg = _over(figure, axes, STEPS, [y for _, points, _ in perplexities for _, y in points])
        explanation = f"Of the held-out rows, as training measured it: e to the loss.{more}"
        yield "Held-out perplexity over training steps", explanation, svg


def _read(path: Path) -> Log:
    """The losses that a training logged, with steps and tokens; lines that cannot be read are passed over."""
    losses: Log = {"loss": [], "eval_loss": []}
    try:
        made = manifest.read(path.parent)
        content = seal.content_of(path.parent, made, path.name) if made else b""
    except LorsError as error:
        log.warning("report: no curves of %s: %s", path.parent, error)
        return losses
    for line in content.decode(errors="replace").splitlines():
        try:
            values = json.loads(line)
            for name, points in losses.items():
                if name in values:
                    points.append((float(values["step"]), float(values["tokens"]), float(values[name])))
        except (ValueError, KeyError, TypeError):
            continue
    return losses


def _plotted(table: Table, curves: list[Curve]) -> tuple[Any, Any] | None:
    """A figure of curves, each in the colour of its line; None if none of them has two."""
    numbers = list(dict.fromkeys(number for number, points, _ in curves if len({x for x, _ in points}) > 1))
    if not numbers:
        return None
    names, colours = plots.names(table), plots.colours(table)
    figure, axes = plots.figure(8, 4)
    for number, points, style in (curve for curve in curves if curve[0] in numbers):
        step = max(len(points) // POINTS, 1)
        kept = points[::step] + (points[-1:] if (len(points) - 1) % step else [])
        axes.plot([x for x, _ in kept], [y for _, y in kept], color=colours[number], **style)
    for number in numbers:
        axes.plot([], [], color=colours[number], label=plots.short(names[number]))
    return figure, axes


def _over(figure: Any, axes: Any, setting: str, perplexities: list[float]) -> str:
    axes.set(xlabel=OVER[setting][0], ylabel="perplexity")
    axes.xaxis.get_major_locator().set_params(integer=setting == STEPS)
    if max(perplexities) > 10 * min(perplexities):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda perplexity, _: f"{perplexity:g}")
    return plots.finished(figure, axes)


def _measured(table: Table, heading: Heading, setting: str) -> Iterator[tuple[str, str, str]]:
    """Models that differ by one setting alone, connected; beside what they were made from."""
    names, curves = plots.names(table), defaultdict[tuple[str, str | None], list[Point]](list)
    for number, entry in enumerate(table.entries):
        row, value = entry.line.row, plots.values(entry)(heading)
        x = _value(row, setting)
        if value and x is not None:
            curves[_alike(row, table, setting)].append((x, value, number))
    several = [points for points in curves.values() if len({x for x, *_ in points}) > 1]
    if not several:
        return
    figure, axes = plots.figure(8, 4)
    shown, (_, title, said) = several[:MOST], OVER[setting]
    colours = plots.colours(table)
    for points in shown:
        xs, values, numbers = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        axes.errorbar(
            xs,
            [value.value for value in values],
            [value.error or 0.0 for value in values],
            color=colours[numbers[0]],
            label=plots.short(re.sub(said, "", names[numbers[0]])),
            capsize=2,
            **HELD_OUT,
        )
    levels = _levels(table, {number for points in shown for *_, number in points}, heading)
    for (number, level), dashes in zip(levels.items(), cycle(DASHES), strict=False):
        label = plots.short(names[number])
        axes.axhline(level, color=plots.GREYS[DENSE], linestyle=dashes, linewidth=1.2, label=label)
    measured = [value.value for points in shown for _, value, _ in points]
    svg = _over(figure, axes, setting, [*measured, *levels.values()])
    mark = f" [{heading.mark}]" if heading.mark else ""
    explanation = f"Models that differ by {setting} alone are connected.{plots.rest(sum(map(len, several[MOST:])))}"
    yield f"{title}{mark}", explanation, svg


def _value(row: Row, setting: str) -> float | None:
    """The setting of a model that it is drawn over: of its training, or of its pruning."""
    made = row.origin.prune if setting == RATIO else row.origin.train if row.kind == TUNED else None
    value = (made or {}).get(setting)
    return value if isinstance(value, int | float) else None


def _alike(row: Row, table: Table, setting: str) -> tuple[str, str | None]:
    """What models have in common that differ by the setting alone, or also by seeds where these are one."""
    if table.over_seeds:
        return lines.alike(row, (setting, *lines.OF_A_SEED)), None
    return lines.alike(row, (setting,)), row.origin.pruned_digest if setting == STEPS else None


def _levels(table: Table, drawn: set[int], heading: Heading) -> dict[int, float]:
    """The perplexities of the dense and pruned models of the lines that are drawn, by the numbers of theirs."""
    dense = {entry.line.row.dense for number, entry in enumerate(table.entries) if number in drawn}
    levels, first = {}, 0
    for group in table.groups:
        numbers = range(first, first + len(group.entries))
        first = numbers.stop
        for number, entry in zip(numbers, group.entries, strict=True):
            row, value = entry.line.row, plots.values(entry)(heading)
            ours = row.dense in dense if row.kind == DENSE else row.kind == PRUNED and drawn & set(numbers)
            if value and ours and number not in drawn:
                levels[number] = value.value
    return levels

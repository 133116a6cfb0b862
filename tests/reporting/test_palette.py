"""Colours: one for each module and method, wherever they are drawn; and no plot of a single dot."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from lors_cli import adapters
from lors_cli.reporting import palette, plots
from lors_cli.reporting.page import all_plots
from lors_cli.tools.report import collect
from tests.reporting.synthetic import make_run


def test_each_place_and_method_has_its_own_colour() -> None:
    assert len({palette.of_place(place) for place in palette.PLACES}) == len(palette.PLACES)
    methods = list(adapters.METHODS)[: len(palette.COLOURS)]
    shades = [palette.shade(palette.of_method(method), number) for method in methods for number in range(3)]
    assert len(set(shades)) == len(shades)
    assert all(re.fullmatch("#[0-9a-f]{6}", shade) for shade in shades)
    assert palette.of_place("experts") == palette.of_place("experts")


def test_a_method_keeps_its_colour_whatever_else_is_reported(tmp_path: Path) -> None:
    for number, (method, rank) in enumerate((("lors", 16), ("spp", 16), ("lors", 4))):
        make_run(tmp_path / str(number), train={"method": method, "rank": rank}, losses={})
    alone, every = collect([tmp_path / "1"]), collect([tmp_path])
    assert palette.of_method("spp") in plots.colours(alone)
    assert palette.of_method("spp") in plots.colours(every)
    tuned = [colour for colour in plots.colours(every) if colour not in plots.GREYS.values()]
    lors, spp = palette.of_method("lors"), palette.of_method("spp")
    assert sorted(tuned) == sorted([lors, palette.shade(lors, 1), spp])


@pytest.mark.parametrize("logged", [1, 4])
def test_a_dot_alone_is_not_drawn(tmp_path: Path, logged: int) -> None:
    run = make_run(tmp_path / "run")
    log = run / "adapter/training_log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:logged]))
    titles = [title for title, *_ in all_plots(collect([run]))]
    assert ("Loss" in titles) == (logged > 1)
    assert not [title for title in titles if title.startswith(("Held-out", "Perplexity against"))]


def test_numbers_on_axes_have_no_offset() -> None:
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.figure(4, 3)
        axes.plot([1, 2], [46720.1, 46720.9], label="loss")
        shown = plots.finished(figure, axes)
    assert "e4" not in shown
    assert "46720" in shown


@pytest.mark.parametrize("sparsity", [0.5, 0.0])
def test_sparsity_is_drawn_once_in_whatever_order_and_not_of_models_without_zeros(
    tmp_path: Path, sparsity: float
) -> None:
    run = make_run(tmp_path / "run")
    modules = [f"model.layers.{b}.mlp.{place}" for b in range(12) for place in ("up_proj", "down_proj")]
    for folder, names in (("pruned", modules), ("merged", sorted(modules))):
        path = run / folder / "lors.json"
        facts = {name: {"sparsity": sparsity, "pattern": "2:4"} for name in names}
        path.write_text(json.dumps({**json.loads(path.read_text()), "modules": facts}))
    drawn = [svg for title, _, svg in all_plots(collect([run])) if title == "Sparsity per module"]
    assert [svg.count(">sparsity</text>") for svg in drawn] == ([1] if sparsity else [])

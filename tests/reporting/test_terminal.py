"""The report at 80 columns: ten models on one screen, the numbers that matter first."""

import random
import re
from pathlib import Path

from lors_cli.reporting import terminal, text
from lors_cli.tools.report import collect
from tests.reporting.synthetic import LOSSES, make_run

TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "rte", "winogrande")


def plain(shown: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", shown)


def test_ten_models_are_one_table_on_a_screen_of_80_columns(tmp_path: Path) -> None:
    for pruner, names in (("sparsegpt", ("lora", "lors", "spp")), ("wanda", ("lora", "lors", "spp", "sqft"))):
        for number, name in enumerate(names):
            drawn = {"dense": random.Random(0), "pruned": random.Random(pruner), "merged": random.Random(pruner + name)}
            answers = {model: {task: draw.choices([0, 1], k=20) for task in TASKS} for model, draw in drawn.items()}
            make_run(
                tmp_path / pruner / name,
                prune={"method": pruner},
                train={"method": name, "rank": 16},
                losses={**LOSSES, "merged": [loss + 100 * number for loss in LOSSES["merged"]]},
                answers=answers,
            )
    table = collect([tmp_path])
    shown = plain(terminal.render(table, 80))
    lines = shown.splitlines()
    assert len(table.entries) == 10
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert sum("sparsegpt + lors r=16" in line for line in lines) == 1
    assert "perplexity" in shown
    assert "average" in shown
    lors = next(line for line in lines if "wanda + lors r=16" in line)
    entry = next(entry for entry in table.entries if entry.line.label == "wanda + lors r=16")
    for heading, cell in zip(table.headings, entry.cells, strict=True):
        number_of = text.number(cell.key.kind, cell.value.value) if cell.value else text.NOTHING
        in_the_list = re.search(rf"Not shown in 80 columns: .*\b{heading.name}\b", re.sub(r"\s+", " ", shown))
        assert number_of in lors or in_the_list, f"{heading.name} is neither in the table nor said to be missing"
    whole = plain(terminal.render(table, 400))
    assert all(heading.name in whole for heading in table.headings)
    assert "±" in whole
    assert "Not shown" not in whole


def test_a_group_of_seeds_and_long_names_keep_within_the_width(runs: Path) -> None:
    for width in (60, 80, 120):
        shown = plain(terminal.render(collect([runs]), width))
        assert all(len(line) <= width or "/" in line for line in shown.splitlines()), "but for paths, to be copied"
        assert "Left out:" in shown

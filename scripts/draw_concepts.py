"""Draw the pictures of docs/concepts.md: python scripts/draw_concepts.py [FOLDER]."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs/concepts"
BLUE, LIGHT, EMPTY, RED = "#1f5fa8", "#9cc0e8", "#f6f8fa", "#c0392b"


def draw_matrix(axes: Axes, x: float, values: np.ndarray, title: str, came_back: np.ndarray | None = None) -> float:
    """Cells from `x` on: a number on blue is kept, white is zero, red came back; the x of the right edge."""
    rows, columns = values.shape
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            bad = came_back is not None and came_back[row, column]
            colour = RED if bad else LIGHT if value else EMPTY
            corner = (x + column, -row - 1)
            axes.add_patch(plt.Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
            axes.text(x + column + 0.5, -row - 0.5, f"{value:g}", ha="center", va="center", size=8, color="black")
    axes.text(x + columns / 2, 0.4, title, ha="center", va="bottom", size=10)
    return x + columns


def draw_sign(axes: Axes, x: float, sign: str, rows: int) -> float:
    """An operator between two matrices; the x where the next one starts."""
    axes.text(x + 0.75, -rows / 2, sign, ha="center", va="center", size=14, color=BLUE)
    return x + 1.5


def two_four(weight: np.ndarray) -> np.ndarray:
    """The mask that keeps the two largest of every four inputs."""
    groups = np.abs(weight).reshape(len(weight), -1, 4)
    order = groups.argsort(axis=2).argsort(axis=2)
    return (order >= 2).reshape(weight.shape)


def new_picture() -> tuple[plt.Figure, Axes]:
    """An empty picture whose text stays text."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lors"})
    figure, axes = plt.subplots(figsize=(10, 2.4))
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure, axes


def save(figure: plt.Figure, axes: Axes, file: Path) -> None:
    """Write it without what changes from run to run."""
    axes.autoscale_view()
    axes.set_ylim(top=1.6)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None, dpi=80)
    plt.close(figure)


def draw_patterns(weight: np.ndarray, file: Path) -> None:
    """A dense matrix, the same at 2:4, and what is stored of it."""
    figure, axes = new_picture()
    mask = two_four(weight)
    x = draw_matrix(axes, 0, weight, "dense")
    x = draw_sign(axes, x, "\N{RIGHTWARDS ARROW}", 4)
    x = draw_matrix(axes, x, np.where(mask, weight, 0), "2:4: two of every four inputs stay")
    kept = np.stack([row[keep] for row, keep in zip(weight, mask, strict=True)])
    x = draw_matrix(axes, draw_sign(axes, x, "\N{RIGHTWARDS ARROW}", 4), kept, "packed: values")
    places = np.stack([np.flatnonzero(keep) % 4 for keep in mask])
    axes.text(x + 0.75, -2, "+", ha="center", va="center", size=14, color=BLUE)
    for row, line in enumerate(places):
        for column, place in enumerate(line):
            axes.text(x + 1.75 + 0.6 * column, -row - 0.5, str(place), ha="center", va="center", size=8)
    axes.text(x + 2.7, 0.4, "places (2 bits each)", ha="center", va="bottom", size=10)
    save(figure, axes, file)


def draw_update(weight: np.ndarray, update: np.ndarray, file: Path, *, masked: bool) -> None:
    """A sparse weight, a low-rank update, and their sum with or without the mask."""
    figure, axes = new_picture()
    mask = two_four(weight)
    sparse = np.where(mask, weight, 0)
    update = np.where(mask, update, 0) if masked else update
    x = draw_matrix(axes, 0, sparse, "W, sparse")
    title = "s BA under the mask" if masked else "s BA"
    x = draw_matrix(axes, draw_sign(axes, x, "+", 4), update, title)
    merged = sparse + update
    came_back = (merged != 0) & ~mask
    title = "LoRS: every zero stays" if masked else "LoRA: every zero is filled"
    draw_matrix(axes, draw_sign(axes, x, "=", 4), np.round(merged, 1), title, came_back)
    save(figure, axes, file)


def main(folder: Path) -> None:
    """All pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(4)
    weight = np.round(draws.uniform(1, 9, (4, 8)), 0) * draws.choice([-1, 1], (4, 8))
    update = np.round(np.outer([0.2, -0.3, 0.4, 0.1], draws.choice([-2, -1, 1, 2], 8)), 1)
    draw_patterns(weight, folder / "two_four.svg")
    draw_update(weight, update, folder / "lora.svg", masked=False)
    draw_update(weight, update, folder / "lors.svg", masked=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

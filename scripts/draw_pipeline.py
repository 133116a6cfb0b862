"""Draw docs/pipeline.svg, the picture of the stages in the README: python scripts/draw_pipeline.py [FILE].

Folders are boxes, stages are arrows; what not every run has is dashed: LoRAM's above, four bits below. The same
matplotlib gives the same bytes.
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from lors_cli.run.layout import STAGES

FILE = Path(__file__).parents[1] / "docs/pipeline.svg"
# What a box stands for: the output of the stage of its name. Then its centre, and what holds for the folder.
BOXES = {
    "model": (0.0, 0.0, "a Hugging Face\ndirectory or hub id"),
    "prune": (3.2, 0.0, "the same form; pruned\nweights are exactly 0"),
    "train": (6.4, 0.0, "small matrices that\nkeep the zeros"),
    "merge": (9.6, 0.0, "pruned model + adapter;\nproof that the zeros stay"),
    "eval": (12.8, 0.0, "dense, pruned and\nmerged, compared"),
    "align": (4.8, 2.0, "trained on general text;\nthe zeros are kept"),
    "quantize": (4.8, -2.2, "the kept weights in\na few bits; zeros stay"),
    "recover": (8.0, 2.0, "the adapter in the\nshapes of the dense model"),
}
ARROWS = [("model", "prune"), ("prune", "train"), ("train", "merge"), ("merge", "eval")]
BITS = [("prune", "quantize"), ("quantize", "train")]
LORAM = [("prune", "align"), ("align", "train"), ("train", "recover"), ("recover", "merge")]
BLUE, GREY, GROUND = "#1f5fa8", "#57606a", "#eaf2fb"
# Where the reader's pages are dark, the colours become these, and black text the last; the ground is that of the page.
DARK, DARK_TEXT = {BLUE: "#79b8ff", GREY: "#a8b3bf", GROUND: "#16283c"}, "#e6edf3"


def draw_box(axes: Axes, name: str) -> None:
    """A folder with its remark: above LoRAM's, below the others."""
    x, y, remark = BOXES[name]
    optional, folder = y != 0, f"{STAGES[name].folder}/" if name in STAGES else ""
    edge = {"edgecolor": BLUE, "facecolor": GROUND, "linestyle": "--" if optional else "-"}
    axes.add_patch(FancyBboxPatch((x - 0.8, y - 0.25), 1.6, 0.5, boxstyle="round,pad=0.1", **edge))
    axes.text(x, y, folder or "dense model", ha="center", va="center", family="monospace" if folder else None)
    for number, line in enumerate(remark.splitlines()):
        height = y + (0.9 if y > 0 else -0.65) - 0.28 * number
        axes.text(x, height, line, ha="center", va="center", color=GREY, size=9)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
    """The way from one folder to the next."""
    line = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.4, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=line)


def draw(file: Path) -> None:
    """Write the picture as SVG, whose text stays text."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lors", "font.size": 11})
    figure, axes = plt.subplots(figsize=(13, 5.0))
    for name in BOXES:
        draw_box(axes, name)
    for start, end in ARROWS:
        left, right = BOXES[start][0] + 0.95, BOXES[end][0] - 0.95
        draw_arrow(axes, (left, 0), (right, 0), "-")
        axes.text((left + right) / 2, 0.12, end, ha="center", va="bottom", color=BLUE, weight="bold")
    for start, end in LORAM:
        (x, y, _), (tip, to, _) = BOXES[start], BOXES[end]
        bottom, top = (x + 0.3, 0.4), (tip - 0.6, 1.6)
        if to > y:
            draw_arrow(axes, bottom, top, "--")
            axes.text(bottom[0] + 0.2, 1.0, end, ha="right", va="center", color=BLUE, weight="bold")
        else:
            draw_arrow(axes, (x + 0.6, 1.6), (tip - 0.3, 0.4), "--")
    for start, end in BITS:
        (x, y, _), (tip, to, _) = BOXES[start], BOXES[end]
        if to < y:
            draw_arrow(axes, (x + 1.35, -0.3), (tip - 0.25, -1.8), "--")
            axes.text(x + 1.2, -1.35, end, ha="right", va="center", color=BLUE, weight="bold")
        else:
            draw_arrow(axes, (x + 0.25, -1.8), (tip - 1.35, -0.3), "--")
    note = "dashed above: only for LoRAM,\nwhere merged/ is the dense model\n+ recovered/ and has its size"
    axes.text(10.6, 2.0, note, ha="left", va="center", color=GREY, size=9)
    axes.set(xlim=(-1.5, 14.2), ylim=(-3.4, 3.2))
    axes.set_axis_off()
    metadata = {"Date": None, "Title": "The stages of lors and the folders that they write"}
    svg = file.suffix == ".svg"
    shown = {"bbox_inches": "tight", "pad_inches": 0.05, "transparent": svg}
    figure.savefig(file, metadata=metadata if svg else None, **shown)
    if svg:
        file.write_text(with_dark_mode(file.read_text(encoding="utf-8")), encoding="utf-8")


def with_dark_mode(svg: str) -> str:
    """The picture with variables for its colours, which a dark page changes, and a role for screen readers."""
    light, dark = [], [f"fill: {DARK_TEXT}"]
    for number, (colour, other) in enumerate(DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light.append(f"--c{number}: {colour}")
        dark.append(f"--c{number}: {other}")
    rules = f"svg{{{'; '.join(light)}}} @media (prefers-color-scheme: dark){{svg{{{'; '.join(dark)}}}}} "
    style = '<style type="text/css">'
    return svg.replace(style, style + rules, 1).replace("<svg ", '<svg role="img" ', 1)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else FILE)

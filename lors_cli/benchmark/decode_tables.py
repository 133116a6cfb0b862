"""The results of ``lors bench --decode`` as tables and as a picture."""

from pathlib import Path
from typing import Any

from lors_cli.console import markdown_table

Ways = dict[str, dict[str, float]]


def render(results: dict[str, Any]) -> str:
    """The results as tables in Markdown, with the limits beside what was reached."""
    asked = results["settings"]
    parts = [f"{asked['subject']}, {asked['dtype']}, medians of at least {asked['rounds']} interleaved runs"]
    if not results["own_code"]:
        parts.append("The C++ code does not run here: packed weights are unpacked for each product, which is slow.")

    def on(threads: int) -> str:
        return f"{threads} thread(s)" if results["device"] == "cpu" else results["device"]

    for threads, rate in results.get("bandwidth", {}).items():
        parts.append(f"read bandwidth of {on(threads)}: {rate / 1e9:.1f} GB/s")
    parts += [f"not measured: {one['what']}: {one['reason']}" for one in results["not_measured"]]
    bandwidth = results.get("bandwidth", {})
    for cell in results["linears"]:
        title = f"linear {cell['linear']}, batch size {cell['batch_size']}, {on(cell['threads'])}"
        parts.append(f"{title}\n\n{_table(cell['ways'], bandwidth.get(cell['threads']))}")
    for cell in results["tokens"]:
        title = f"whole tokens, batch size {cell['batch_size']}, after {cell['prompt_length']} tokens"
        if results["device"] != "cpu" and (launched := [*{*cell["ways"]} - {*cell["cuda_graphs"]}]):
            title += f", {', '.join(launched)} without a CUDA graph"
        parts.append(f"{title}, {on(cell['threads'])}\n\n{_table(cell['ways'], None, cell['batch_size'])}")
        rest = cell["ways"]["no linears"]["ms"]
        shares = [f"{way} {rest / one['ms']:.0%}" for way, one in cell["ways"].items() if way != "no linears"]
        parts.append(f"share of a token outside the linears: {', '.join(shares)}")
    return "\n\n".join(parts)


def _table(ways: Ways, bandwidth: float | None, batch: int = 0) -> str:
    """One cell; of whole tokens if it has a batch."""
    head = ["", "ms", "x torch", "x own dense", "limit by bytes", "MB", "GB/s"]
    head += ["of bandwidth"] * bool(bandwidth) + ["tokens/s", "prompt ms"] * bool(batch)
    torch, own = ways["torch"], ways.get("own dense")
    rows = []
    for way, one in ways.items():
        rate = one["bytes"] / one["ms"] * 1e3
        row = [way, f"{one['ms']:.3g}", f"{torch['ms'] / one['ms']:.2f}", f"{own['ms'] / one['ms']:.2f}" if own else ""]
        row += [f"{torch['bytes'] / one['bytes']:.2f}", f"{one['bytes'] / 1e6:.1f}", f"{rate / 1e9:.1f}"]
        row += [f"{rate / bandwidth:.0%}"] if bandwidth else []
        row += [f"{1e3 * batch / one['ms']:.1f}", f"{one['prompt_ms']:.0f}"] if batch else []
        rows.append(row)
    return markdown_table(head, rows)


def draw(results: dict[str, Any], path: Path) -> Path:
    """A picture: how many times as fast as PyTorch each way is, in each cell, beside its limit by bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [(f"{c['linear']}\nbatch {c['batch_size']}, {c['threads']} thr.", c["ways"]) for c in results["linears"]]
    cells += [
        (f"token after {c['prompt_length']}\nbatch {c['batch_size']}, {c['threads']} thr.", c["ways"])
        for c in results["tokens"]
    ]
    figure, axis = pyplot.subplots(figsize=(max(6, 1.5 * len(cells) + 2), 4.5), layout="constrained")
    names = list(dict.fromkeys(way for _, ways in cells for way in ways if way not in ("torch", "no linears")))
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        at = [number + (place - (len(names) - 1) / 2) * width for number, (_, ways) in enumerate(cells) if name in ways]
        there = [ways for _, ways in cells if name in ways]
        axis.bar(at, [ways["torch"]["ms"] / ways[name]["ms"] for ways in there], width, label=name)
        limits = [ways["torch"]["bytes"] / ways[name]["bytes"] for ways in there]
        axis.hlines(limits, [x - width / 2 for x in at], [x + width / 2 for x in at], color="black", linewidth=1)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(cells)), [label for label, _ in cells], fontsize=7)
    axis.set_ylabel("times as fast as PyTorch; lines: fewer bytes")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(f"{results['settings']['subject']}, {results['settings']['dtype']}", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path

"""The colours of all plots: one for each module and one for each method, whatever else is drawn.

They can be told apart on a light and on a dark page. Lines of the same method are shades of its colour.
"""

from lors_cli import adapters

INK = "#1a1a1a"  # of words and axes; on the page it is the colour of its text
COLOURS = ("#3b7dd8", "#e0812c", "#3a9a4c", "#d1495b", "#8e6bc4", "#9a6a4f", "#d66bb0", "#6f7f8f", "#a3a12e", "#2fa3b3")
PLACES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LIGHTER = (0.0, 0.35, 0.6)


def of_place(place: str) -> str:
    """The colour of a module, by its place in a block."""
    return COLOURS[PLACES.index(place) if place in PLACES else _of_text(place)]


def order(place: str) -> int:
    """The number of a module in a block; those that are not known come last."""
    return PLACES.index(place) if place in PLACES else len(PLACES)


def of_method(method: str) -> str:
    """The colour of an adapter method."""
    known = list(adapters.METHODS)
    return COLOURS[known.index(method) % len(COLOURS) if method in known else _of_text(method)]


def shade(base: str, number: int) -> str:
    """The shade of a colour for the line with this number among those that share it."""
    share = LIGHTER[number % len(LIGHTER)]
    parts = (int(base[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share * 0.8):02x}" for part in parts)


def _of_text(text: str) -> int:
    """A colour that follows from a name, the same in each report."""
    return sum(text.encode()) % len(COLOURS)

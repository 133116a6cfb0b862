"""Recipes: settings of ``prune`` and ``train`` that recover most together, for what a config does not say itself.

A recipe that was released never changes. A better one gets a name of its own, and ``best`` is short for the newest;
what is recorded is the name that ``best`` stood for. So what was written with a recipe means the same later on.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

BEST = "best"
SETS = "recipe "  # begins the name of what has set a key, where that was a recipe


@dataclass(frozen=True)
class Preset:
    """The values of some keys of a section. They hold with these `methods` only, if any are named."""

    section: str
    values: dict[str, Any]
    methods: tuple[str, ...] = ()

    def holds(self, section: dict[str, Any]) -> bool:
        """Whether it is for the method that the section has."""
        return not self.methods or section.get("method") in self.methods


@dataclass(frozen=True)
class Recipe:
    """Presets, of which each section's method comes first, and the day on which they were released."""

    released: str
    presets: tuple[Preset, ...]


LORS_1 = {
    "init": "random",
    "schedule": "cosine",
    "also": ["norms"],
    "also_learning_rate": 1e-3,
    "learning_rate": 4e-3,
}
RECIPES = {
    "best-1": Recipe(
        "2026-11-27",
        (
            Preset("prune", {"method": "wanda"}),
            Preset("prune", {"update": "least_squares"}, ("magnitude", "wanda", "ria", "sparsegpt", "from_mask")),
            Preset("train", {"method": "lors"}),
            Preset("train", LORS_1, ("lors",)),
        ),
    ),
}
NEWEST = next(reversed(RECIPES))
NAMES = [BEST, *RECIPES]


def fill(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a config, with what its recipe sets where it has nothing, and what has set these dotted keys.

    A key that has null is not set either: that is how a config takes one key out of the recipe. Sections that are not
    there are not made. With an unknown name the newest recipe is taken, so that the name is the only mistake.
    """
    asked = raw.get("recipe")
    if asked is None:
        return raw, {}
    name = asked if isinstance(asked, str) and asked in RECIPES else NEWEST
    filled: dict[str, Any] = deepcopy(raw)
    if asked == BEST:
        filled["recipe"] = name
    keys = []
    for preset in RECIPES[name].presets:
        section = filled.get(preset.section)
        if isinstance(section, dict) and preset.holds(section):
            unset = {key: value for key, value in preset.values.items() if key not in section}
            section.update(deepcopy(unset))
            keys += [f"{preset.section}.{key}" for key in unset]
    return filled, dict.fromkeys(keys, f"{SETS}{name}")


def always_sets() -> list[str]:
    """The keys that every recipe sets, whatever the method: those need not be in a config that names one."""
    kept = [{f"{p.section}.{key}" for p in r.presets if not p.methods for key in p.values} for r in RECIPES.values()]
    return sorted(set.intersection(*kept))


def written(config: BaseModel) -> dict[str, Any]:
    """What a config sets, as plain data; with null for what its recipe would set but this config does not have."""
    content = config.model_dump(mode="json", exclude_unset=True)
    for preset, section, key, _ in _presets(content):
        if preset.holds(section):
            section.setdefault(key, None)
    return content


def said(config: BaseModel, stage: str) -> list[str]:
    """What the recipe of a config has set for a stage, and what not, in one line; none if it has nothing for it."""
    content = config.model_dump(mode="json")
    taken, others = [], []
    apart: dict[tuple[str, ...], list[str]] = {}
    for preset, section, key, value in _presets(content):
        found = section.get(key)
        if preset.section != stage:
            continue
        if not preset.holds(section):
            apart.setdefault(preset.methods, []).append(key)
        elif found == value:
            taken.append(f"{key} {_word(value)}")
        else:
            others.append(f"not its {key} {_word(value)}, but {_word(found)}")
    others += [
        f"nothing of what it has for {', '.join(methods)} ({', '.join(keys)})" for methods, keys in apart.items()
    ]
    if not taken and not others:
        return []
    words = "; ".join(filter(None, [", ".join(taken), *others]))
    return [f"{SETS}{content['recipe']} of {RECIPES[content['recipe']].released}: {words}"]


def _presets(content: dict[str, Any]) -> Iterator[tuple[Preset, dict[str, Any], str, Any]]:
    """Each key of a config's recipe, with its preset and its value, for those sections that the config has."""
    recipe = RECIPES.get(str(content.get("recipe")))
    for preset in recipe.presets if recipe else ():
        if isinstance(section := content.get(preset.section), dict):
            for key, value in preset.values.items():
                yield preset, section, key, value


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else "nothing" if value is None else str(value)

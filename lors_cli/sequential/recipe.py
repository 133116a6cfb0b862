"""What is to be done to each linear: the method with its options, the target of each linear, a profile over blocks."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lors_cli import pruning
from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.config.prune import Prune
from lors_cli.errors import LorsError, request_error
from lors_cli.models import linears
from lors_cli.sparsity.pattern import Pattern

REPAIR_STATISTIC = "input_moments"
PROFILE_STATISTIC = "input_norm"


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned.

    `targets` has the linears to prune, each with what it is to hold; None for what its mask says.
    """

    section: Prune
    targets: dict[str, Pattern | None]
    sizes: dict[str, int]
    follows_profile: set[str] = field(default_factory=set)
    masks: TensorFiles | None = None

    @property
    def method(self) -> pruning.Method:
        """The registry row."""
        return pruning.METHODS[self.section.method]

    @property
    def statistics(self) -> list[str]:
        """What calibration gathers for pruning."""
        gathered = [str(self.method.statistic)] if self.method.calibrated else []
        return gathered + ([REPAIR_STATISTIC] if self.section.repair else [])

    def options(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The section's values of the method's options `names`."""
        return {name: getattr(self.section, name) for name in names}

    def with_profile(self, outliers: list[dict[str, Any]], prefix: str) -> "Recipe":
        """Spread the asked sparsity over the blocks by their shares of outliers (OWL, Yin et al. 2024, section 3.2).

        The shares d are scaled to a range of 2 lambda, and block b gets ``S + mean(d) - d_b``: the more outliers, the
        less is removed. The mean is weighted by parameters, so that the asked sparsity is met also where overrides
        make the blocks unequal; with equal blocks it is the published one.

        Raises:
            LorsError: a block would have to lose less than nothing or everything.

        """
        width = 2 * self.section.profile_range
        asked = self.section.sparsity or Pattern(0.0)  # never None beside a profile
        shares = [float(facts["outliers"]) for facts in outliers]
        low, high = min(shares), max(shares)
        scaled = [(share - low) / (high - low) * width if high > low else 0.0 for share in shares]
        block_of = {name: int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in self.follows_profile}
        total = sum(self.sizes[name] for name in block_of)
        mean = sum(scaled[block] * self.sizes[name] for name, block in block_of.items()) / total
        levels = [asked.sparsity + mean - share for share in scaled]
        wrong = [
            (block, level) for block, level in enumerate(levels) if block in block_of.values() and not 0 < level < 1
        ]
        if wrong:
            raise LorsError(
                f"the profile cannot reach a mean sparsity of {asked}: block {wrong[0][0]} would get {wrong[0][1]:.3f};"
                " lower prune.profile_range, or ask for another sparsity"
            )
        spread: dict[str, Pattern | None] = {name: Pattern(levels[block]) for name, block in block_of.items()}
        return replace(self, targets={**self.targets, **spread})


def build(section: Prune, found: dict[str, nn.Linear], masks: TensorFiles | None) -> Recipe:
    """The recipe of a config for the linears `found` of a (skeleton) model.

    Raises:
        RequestError: an override matches nothing, or a target does not fit a linear.

    """
    names = list(found)
    targets: dict[str, Pattern | None] = dict.fromkeys(names, section.sparsity)
    plain = set(names)
    keys = dict.fromkeys(names, "prune.sparsity")
    for position, override in enumerate(section.overrides):
        key = f"prune.overrides[{position}]"
        for name in linears.select(names, [override.match], f"{key}.match"):
            plain.discard(name)
            if override.skip:
                targets.pop(name, None)
            else:
                targets[name] = override.sparsity
                keys[name] = f"{key}.sparsity"
    if not targets:
        raise request_error("prune.overrides", "at least one linear left to prune", "all skipped", "skip fewer")
    for name, pattern in targets.items():
        columns = found[name].in_features
        if pattern and pattern.m and columns % pattern.m:
            raise request_error(
                keys[name],
                f"N:M with M dividing the inputs of every linear ({name} has {columns})",
                str(pattern),
                "use another M, or a fraction",
            )
    if masks:
        _check_masks(masks, {name: found[name] for name in targets})
    sizes = {name: linear.weight.numel() for name, linear in found.items()}
    follows = plain & targets.keys() if section.profile else set()
    if section.profile and not follows:
        got = "overrides that set every linear"
        raise request_error("prune.profile", "linears left for the profile to set", got, "remove the profile")
    return Recipe(section, targets, sizes, follows, masks)


def _check_masks(masks: TensorFiles, wanted: dict[str, nn.Linear]) -> None:
    for name, linear in wanted.items():
        shape = tuple(linear.weight.shape)
        got = masks.layout.get(mask_name(masks, name))
        if got is None or got[0] != shape:
            raise request_error(
                "prune.mask",
                f"a tensor {name}.weight of shape {shape} for every linear that is not skipped",
                f"{masks.path} with " + (f"shape {got[0]} for it" if got else f"{len(masks.layout)} others"),
                "name a mask made for this model, or skip that linear with prune.overrides",
            )


def mask_name(masks: TensorFiles, linear: str) -> str:
    """What the mask of `linear` is called: like its weight, or like the linear itself."""
    return linear if linear in masks.layout else f"{linear}.weight"

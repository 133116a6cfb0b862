"""What is to be done to each linear: the method with its options, the target of each linear, a profile over blocks."""

from dataclasses import dataclass, field, replace

from torch import nn

from lors_cli.config.prune import Prune
from lors_cli.errors import request_error
from lors_cli.models.linears import select
from lors_cli.options import Options
from lors_cli.pruning import METHODS, PROFILES, REPAIRS, UPDATES, PermuteOptions
from lors_cli.pruning.rows import Method, Profile, Repair, Row, Update
from lors_cli.quantization.grid import Grid
from lors_cli.sequential.masks import Masks
from lors_cli.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned.

    Attributes:
        section: of the config.
        targets: the linears to prune, each with what it is to hold; None for what its mask says.
        sizes: how many weights each linear of the model has.
        follows_profile: the linears whose sparsity a profile sets.
        masks: made elsewhere, for a method that reads them.

    """

    section: Prune
    targets: dict[str, Pattern | None]
    sizes: dict[str, int]
    follows_profile: set[str] = field(default_factory=set)
    masks: Masks | None = None

    @property
    def method(self) -> Method:
        """The registry row of the method."""
        return METHODS[self.section.method]

    @property
    def profile(self) -> Profile | None:
        """The registry row of the profile."""
        return PROFILES[self.section.profile] if self.section.profile else None

    @property
    def repair(self) -> Repair | None:
        """The registry row of the repair."""
        return REPAIRS[self.section.repair] if self.section.repair else None

    @property
    def update(self) -> Update | None:
        """The registry row of the update."""
        return UPDATES.get(self.section.update)

    @property
    def statistics(self) -> list[str]:
        """What calibration gathers for pruning."""
        rows = (self.method, self.repair, self.update)
        return list(dict.fromkeys(row.statistic for row in rows if row and row.statistic))

    @property
    def reads_text(self) -> bool:
        """Whether calibration windows go through the blocks as they are pruned."""
        return bool(self.statistics or self.section.tune_blocks)

    @property
    def grid(self) -> Grid | None:
        """The grid to which what is kept is rounded in the same solve."""
        return self.section.quantize.grid if self.section.quantize else None

    @property
    def permutes(self) -> bool:
        """Whether inputs of linears are reordered."""
        options = self.options(self.method)
        return isinstance(options, PermuteOptions) and options.permute

    def options(self, row: Row) -> Options:
        """The values of the options of `row`."""
        return self.section.values(row.options)

    def with_profile(self, shares: list[float], prefix: str) -> "Recipe":
        """Spread the asked sparsity over the blocks by what the profile measured in each of them.

        Overrides make blocks unequal, so each counts by its weights that follow the profile.

        Raises:
            LorsError: a block would have to lose less than nothing or everything.

        """
        if not (self.profile and self.section.sparsity):
            return self
        block_of = {name: int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in self.follows_profile}
        sizes = [0] * len(shares)
        for name, block in block_of.items():
            sizes[block] += self.sizes[name]
        levels = self.profile.spread(shares, sizes, self.section.sparsity.sparsity, self.options(self.profile))
        spread: dict[str, Pattern | None] = {name: Pattern(levels[block]) for name, block in block_of.items()}
        return replace(self, targets={**self.targets, **spread})


def build(section: Prune, linears: dict[str, nn.Linear], masks: Masks | None) -> Recipe:
    """The recipe of a config for the `linears` of a (skeleton) model.

    Raises:
        RequestError: an override matches nothing, or a target does not fit a linear.

    """
    names = list(linears)
    targets: dict[str, Pattern | None] = dict.fromkeys(names, section.sparsity)
    plain = set(names)
    keys = dict.fromkeys(names, "prune.sparsity")
    for position, override in enumerate(section.overrides):
        key = f"prune.overrides[{position}]"
        for name in select(names, [override.match], f"{key}.match"):
            plain.discard(name)
            if override.skip:
                targets.pop(name, None)
            else:
                targets[name] = override.sparsity
                keys[name] = f"{key}.sparsity"
    if not targets:
        raise request_error(
            "prune.overrides", "at least one linear left to prune", "all linears are skipped", "skip fewer"
        )
    for name, pattern in targets.items():
        columns = linears[name].in_features
        if pattern and pattern.m and columns % pattern.m:
            raise request_error(
                keys[name],
                f"N:M with M dividing the inputs of every linear ({name} has {columns})",
                str(pattern),
                "use another M, or a fraction",
            )
    if masks:
        _check_masks(masks, {name: linears[name] for name in targets})
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    follows = plain & targets.keys() if section.profile else set()
    if section.profile and not follows:
        got = "overrides that set every linear"
        raise request_error("prune.profile", "linears left for the profile to set", got, "remove the profile")
    return Recipe(section, targets, sizes, follows, masks)


def _check_masks(masks: Masks, wanted: dict[str, nn.Linear]) -> None:
    for name, linear in wanted.items():
        shape, got = tuple(linear.weight.shape), masks.shape(name)
        if got != shape:
            raise request_error(
                "prune.mask",
                f"a tensor {name}.weight of shape {shape} for every linear that is not skipped",
                f"{masks.path} with " + (f"shape {got} for it" if got else f"{masks.count} others"),
                "name a mask made for this model, or skip that linear with prune.overrides",
            )

"""What a sweep file may say. docs/sweep.md shows one with a comment for each key."""

from collections.abc import Iterable, Iterator, Mapping, Set
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from lors_cli.config.fields import Count, Dataset, Fault, PathText, Section, Seed
from lors_cli.config.load import checked, overridden, override, read
from lors_cli.config.problems import CLI
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, close, nearest

# Names become directories.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$")]
Settings = dict[str, Any]
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
LENGTHS = ("train.max_steps", "train.max_tokens", "train.epochs")
SHARED = ("dense", "pruned", "aligned", "quantized")  # models that a start measures, once for all of its arms


class Start(Section):
    """What runs share, made and measured once: a pruned model, an aligned or a quantised one, or the model as it is."""

    config: str | None = Field(None, description="another config for this start; a path, from the sweep file")
    set: Settings = Field({}, description="overrides, by dotted keys")
    time_of: str | None = Field(
        None, description="the start on which budget.time_of is timed; the time of making either is counted in it"
    )


class Arm(Section):
    """One way to train."""

    set: Settings = Field({}, description="overrides, by dotted keys")
    grid: Grid = Field({}, description="keys and the values that are searched; every combination is trained")
    model: Literal["dense", "pruned", "aligned", "quantized"] | None = Field(
        None, description="what it trains; the last model that the start makes if left out"
    )
    starts: list[str] | None = Field(
        None, description="names or globs of the starts that it is trained on; those with a pruned model if left out"
    )


class Budget(Section):
    """How long each run trains; as the config says if left out."""

    steps: Count | None = Field(None, description="optimiser steps")
    tokens: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="tokens to train on, in whole steps"
    )
    seconds: Annotated[float, Field(gt=0, le=10**8)] | None = Field(
        None, description="time of a training with its start, by timed steps of each arm"
    )
    time_of: str | None = Field(
        None, description="an arm: each arm is trained once more, at its best setting, in the time that this one takes"
    )

    @property
    def timed(self) -> bool:
        """Whether steps have to be timed."""
        return bool(self.seconds or self.time_of)

    def faults(self) -> Iterator[Fault]:
        """Not one length, or a time that nothing tells."""
        lengths = tuple(name for name in ("steps", "tokens", "seconds") if getattr(self, name))
        if len(lengths) != 1:
            yield Fault("steps", "one of steps, tokens and seconds", "" if lengths else "add steps: N", drop=lengths)
        elif self.time_of and not self.steps:
            expected = "steps together with time_of, which is the time that these steps take"
            yield Fault("steps", expected, f"write steps in place of {lengths[0]}", drop=("time_of",))


class Choose(Section):
    """How the best point of each arm's grid is found: it has the lowest number of the first seed."""

    by: Literal["held_out_loss", "perplexity"] = Field(
        "held_out_loss", description="of the adapter on train.eval_dataset, or of the merged model on eval.perplexity"
    )
    held_out: Dataset | None = Field(
        None, description="text whose rows choose and judge in turns, instead of the two data sets above"
    )
    extend: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="values that may be added where the best one is at an edge of the grid"
    )


class SweepFile(Section):
    """A search over one experiment."""

    config: str | Settings | None = Field(None, description="the experiment: a path, from this file, or its content")
    output_dir: PathText | None = Field(None, description="where all of it goes; the config's if left out")
    set: Settings = Field({}, description="overrides for all runs, by dotted keys")
    models: dict[str, PathText] = Field(
        {},
        description="where models are: paths, by what configs call the models, or by what follows the last slash of it",
    )
    files: dict[str, PathText] = Field(
        {}, description="where data sets, masks, tasks and adapters are: paths, by what configs call them"
    )
    starts: dict[Name, Start] = Field({}, description="what runs share; left out: what the config makes before train")
    arms: dict[Name, Arm] = Field(description="ways to train, each on each start", min_length=1)
    every: Grid = Field({}, description="keys and values that are all measured, each with a search of its own")
    seeds: list[Seed] = Field([], description="of the trainings; the config's if left out")
    budget: Budget | None = None
    choose: Choose = Choose()
    evaluations: dict[Name, Settings] = Field(
        {},
        description="overrides for further evaluations; eval.models names what they measure, dense and merged if left"
        " out",
    )
    compare_to: str | None = Field(
        None, description="an arm: what the others of a start differ from it, seed by seed, is in a table of its own"
    )
    keep_models: bool = Field(True, description="false: delete merged models once they are measured")
    only: list[str] = Field([], description="names or globs of starts and arms; the others are left out")
    optional: list[str] = Field(
        [], description="names or globs of starts and evaluations that are left out if a data set of theirs is missing"
    )

    def faults(self) -> Iterator[Fault]:
        """Names that are not there, keys that are set twice, and grids that cannot be extended."""
        yield from self._name_faults("only", "starts and arms", [*self.starts, *self.arms])
        yield from self._name_faults("optional", "starts and evaluations", [*self.starts, *self.evaluations])
        reference = self.budget and self.budget.time_of
        if self.config is None and not all(start.config for start in self.starts.values() or [Start()]):
            yield Fault("config", "a config, or one for each start", "add config: with its path or its content")
        if reference and reference not in self.arms:
            yield Fault("budget.time_of", f"an arm: {', '.join(self.arms)}", nearest(reference, list(self.arms)))
        if self.compare_to and self.compare_to not in self.wanted(self.arms):
            arms = self.wanted(self.arms)
            yield Fault("compare_to", f"an arm: {', '.join(arms)}", nearest(self.compare_to, arms), ("compare_to",))
        yield from self._time_faults()
        for key in sorted({*(LENGTHS if self.budget else ()), *(["seed"] if self.seeds else [])} & self.keys):
            setter = "seeds" if key == "seed" else "budget"
            expected = f"no {key} in arms, starts and every, because {setter} sets it"
            yield Fault("arms", expected, f"remove {key} there", drop=(setter,))
        for name, arm in self.arms.items():
            axis = next(iter(arm.grid.values()), [0, 1])
            numbers = all(isinstance(one, int | float) for one in axis) and axis == sorted(axis) and len(axis) > 1
            if self.choose.extend and (len(arm.grid) > 1 or not numbers):
                expected = "one key with at least two rising numbers, since choose.extend goes on at their ends"
                yield Fault(f"arms.{name}.grid", expected, "write such a grid, or choose.extend: 0")

    def _name_faults(self, key: str, kinds: str, names: list[str]) -> Iterator[Fault]:
        if unknown := [one for one in getattr(self, key) if not any(fits(name, [one]) for name in names)]:
            hints = " ".join(f"{name!r}: {nearest(name, names)}" for name in sorted(set(unknown)))
            yield Fault(key, f"names of {kinds}: {', '.join(names)}", hints)

    def _time_faults(self) -> Iterator[Fault]:
        measures = [name for name, start in self.starts.items() if not start.time_of]
        for name, start in self.starts.items():
            key = f"starts.{name}.time_of"
            if start.time_of and start.time_of not in measures:
                expected = f"a start without a time_of of its own: {', '.join(measures)}"
                yield Fault(key, expected, nearest(start.time_of, measures))
            elif start.time_of and not (self.budget and self.budget.timed):
                expected = "a budget of time with it: seconds, or steps with time_of"
                yield Fault(key, expected, "add budget.time_of: ARM", drop=(key,))

    @property
    def keys(self) -> Set[str]:
        """The keys of the config that starts, arms and `every` set."""
        arms, starts = self.arms.values(), self.starts.values()
        settings = [self.every, *(arm.set for arm in arms), *(arm.grid for arm in arms), *(one.set for one in starts)]
        return {key for one in settings for key in one}

    def wanted(self, names: Mapping[str, Any]) -> list[str]:
        """The names that `only` leaves; all names if `only` does not have any of them."""
        return [name for name in names if fits(name, self.only)] or list(names)


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of the names, or fits one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def load(path: Path, arguments: list[str]) -> tuple[SweepFile, list[str]]:
    """The sweep file, and those of the arguments that override its config rather than its own keys.

    Raises:
        RequestError: with every problem of the file.

    """
    content = read(path)
    first = {text: overridden(text).split(".")[0] for text in arguments}
    own = [text for text, key in first.items() if key in SweepFile.model_fields]
    known = [*SweepFile.model_fields, *Config.model_fields]
    if unknown := [key for key in first.values() if key not in known]:
        expected = "a key of the sweep file, or of its config"
        raise RequestError(*(Problem(key, expected, repr(key), _likely(key, content, known), CLI) for key in unknown))
    for text in own:
        override(content, text)
    keys = {overridden(text): CLI for text in own}
    return checked(SweepFile, content, path, keys), [text for text in arguments if text not in own]


def _likely(key: str, content: dict[str, Any], known: list[str]) -> str:
    """What was meant; the file's own key first, where it has it: then it sets what the key of the config would."""
    written = [name for name in content if name in known]
    return nearest(key, written) if close(key, written) else nearest(key, known)

"""Kills and faults, and what has to hold after each."""

import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.faults import contents
from tests.faults.box import Box, Ended
from tests.faults.contents import Contents
from tests.faults.shim import CHANGES, EVERY, Action, Event, Fault, Kind
from tests.faults.works import Work

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = {signal.SIGKILL: {-9}, signal.SIGTERM: {130, 143}, signal.SIGINT: {130}}


def undisturbed(box: Box, work: Work, *, modules: bool = False) -> Ended:
    """Run a command as it is, and count its events.

    Raises:
        RuntimeError: it fails.

    """
    ended = box.run(work.arguments, Fault(Action.COUNT, EVERY), modules=modules)
    if ended.status:
        raise RuntimeError(f"{work.name} fails undisturbed with exit {ended.status}:\n{ended.output}")
    return ended


class Disturber:
    """Disturbs runs in a box.

    Attributes:
        chosen: the kinds of runs that are.
        counts: of what was done: "kill", the kind of run and the signal, or "fault", the kind of run and the fault.
        findings: what should not be: each with the disturbance, to find it again.

    """

    def __init__(self, box: Box, random: random.Random, chosen: Sequence[Work], summary: Path) -> None:
        self.box, self.random, self.chosen, self._summary = box, random, chosen, summary
        self.counts: Counter[str] = Counter()
        self.findings: list[dict[str, Any]] = []
        self._left: dict[tuple[str, Kind], Iterator[int]] = {}
        self._events: dict[str, list[Event]] = {}
        self.before: dict[str, Contents] = {}
        self.after: dict[str, Contents] = {}

    def measure(self, chosen: Sequence[Work]) -> None:
        """Find the events and the result of each command, which the box has kept once already.

        Raises:
            RuntimeError: a command does not make the same thing twice, so that nothing can be compared with it.

        """
        for work in chosen:
            self.box.restore(work.after)
            self.before[work.name] = contents.read(self.box.root)
            self._events[work.name] = undisturbed(self.box, work).events
            self.after[work.name] = contents.read(self.box.root)
            if wrong := contents.differences(self.after[work.name], contents.read(self.box.kept(work.name))):
                raise RuntimeError(f"{work.name} differs from one run to the next: {', '.join(wrong)}")

    def events(self, work: Work, kinds: Kind) -> list[Event]:
        """The events of an undisturbed run."""
        return [event for event in self._events[work.name] if event.kind & kinds]

    def draw(self, kinds: Kind) -> tuple[Work, int]:
        """A kind of run, rather one that does less, and the number of an event of these kinds in it.

        Of each kind of run first one event of each different call at each place comes, and then the others.
        """
        chosen = [work for work in self.chosen if self.events(work, kinds)]
        (work,) = self.random.choices(chosen, [1 / len(self._events[work.name]) for work in chosen])
        if (work.name, kinds) not in self._left:
            self._left[work.name, kinds] = self._shuffled(work, kinds)
        return work, next(self._left[work.name, kinds])

    def _shuffled(self, work: Work, kinds: Kind) -> Iterator[int]:
        first: list[int] = []
        others: list[int] = []
        seen = set()
        numbered = list(enumerate(self.events(work, kinds)))
        self.random.shuffle(numbered)
        for number, (_, call, path) in numbered:
            what = call, contents.kind_of(path)
            (others if what in seen else first).append(number)
            seen.add(what)
        return cycle([*first, *others])

    def kill(self, total: int) -> None:
        """Kill runs until it was done `total` times, a third of them twice before they may end."""
        while (kills := self.done("kill")) < total:
            twice = self.done("killed twice")
            work, at = self.draw(CHANGES)
            action = Action.TORN if self.random.random() < 0.3 else Action.SIGNAL
            self.box.restore(work.after)
            story = [self.interrupt(work, Fault(action, CHANGES, at, self.random.choice(SIGNALS)))]
            if 3 * twice <= kills - twice:
                # a run that goes on has fewer events than a whole one, about those that are left
                again = self.random.randrange(len(self.events(work, CHANGES)) - self.random.choice([at, 0]))
                story.append(self.interrupt(work, Fault(action, CHANGES, again, self.random.choice(SIGNALS))))
                self.counts[f"killed twice: {work.name}"] += self.done("kill") == kills + 2
            self.finish(work, story)

    def done(self, way: str) -> int:
        """How many disturbances of that kind there were."""
        return sum(number for key, number in self.counts.items() if key.startswith(f"{way}: "))

    def interrupt(self, work: Work, how: Fault) -> str:
        """Kill a run, and look whether anything incomplete has a final name. What was done, in words."""
        ended = self.box.run(work.arguments, how)
        number = signal.Signals(how.value)
        if not ended.events:  # the run had fewer events
            return f"{number.name} came too late"
        self.counts[f"kill: {work.name}: {number.name}"] += 1
        self.counts[f"finished: {work.name}: {number.name}"] += ended.status == 0
        story = f"{number.name} ({how.action.name}) at {how.at}: {self.words(ended)}"
        if ended.status not in {0, *INTERRUPTED[number]}:
            self.found(work, [story], f"ends with {ended.status}", ended.output)
        self.whole(work, [story], ended)
        return story

    def words(self, ended: Ended) -> str:
        """The event that was chosen."""
        _, call, path = ended.events[0]
        return f"{call} {path}".replace(f"{self.box.root}/", "")

    def whole(self, work: Work, story: list[str], ended: Ended) -> Contents:
        """Look whether anything incomplete has a final name, or there was a traceback; what there is."""
        now = contents.read(self.box.root)
        for wrong in contents.incomplete(now, self.before[work.name], self.after[work.name]):
            self.found(work, story, wrong, ended.output)
        if "Traceback" in ended.output or "Exception ignored" in ended.output:
            self.found(work, story, "a traceback", ended.output)
        return now

    def finish(self, work: Work, story: list[str]) -> None:
        """Run the command once more: everything is then as if nothing had disturbed it."""
        ended = self.box.run(work.arguments)
        if ended.status and not (work.once and ended.status == 2):
            self.found(work, story, f"cannot go on: exit {ended.status}", ended.output)
        for wrong in contents.differences(contents.read(self.box.root), self.after[work.name]):
            self.found(work, story, wrong, ended.output)
        self.save()

    def found(self, work: Work, story: list[str], wrong: str, output: str) -> None:
        """Remember something that should not be."""
        self.findings.append({"run": work.name, "disturbed by": story, "found": wrong, "printed": output[-2000:]})
        print(f"{work.name}: {'; '.join(story)}: {wrong}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write down what was done and found until now."""
        new = self._summary.with_suffix(".new")
        new.write_text(json.dumps({"counts": +self.counts, "findings": self.findings}))
        new.replace(self._summary)

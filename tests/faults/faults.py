"""Reads and writes that fail, and bytes that change on the disk: each is explained, and nothing wrong is published."""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import contents
from tests.faults.box import Ended
from tests.faults.disturb import SIGNALS, Disturber
from tests.faults.shim import CHANGES, READS, Action, Fault, Kind
from tests.faults.works import Work

CARD = "README.md"  # a text that people edit
OPENS = Kind.OPEN_READ | Kind.OPEN_WRITE
GROWTH = Kind.OPEN_WRITE | Kind.WRITE
# What goes wrong: how, at which events, and with which errno.
WRONG = [
    (Action.FAIL, GROWTH, errno.ENOSPC),
    (Action.FAIL_FROM_HERE, GROWTH, errno.ENOSPC),
    (Action.FAIL, Kind.WRITE | Kind.SYNC, errno.EIO),
    (Action.FAIL, READS, errno.EIO),
    (Action.FAIL, OPENS, errno.EMFILE),
    (Action.FAIL_FROM_HERE, OPENS, errno.EMFILE),
    (Action.FAIL, OPENS | Kind.NAME, errno.EACCES),
    (Action.FAIL, Kind.NAME, errno.EIO),
    (Action.FAIL, Kind.OPEN_READ, errno.ENOENT),
    (Action.SHORT, Kind.WRITE, 0),
    (Action.SHORT, Kind.READ, 0),
]


@dataclass(frozen=True)
class Damage:
    """A way in which a file changes on the disk."""

    name: str
    change: Callable[[bytes, int], bytes | None]


GONE = Damage("no longer there:", lambda old, at: None)
DAMAGES = [
    Damage("a flipped bit in", lambda old, at: old[:at] + bytes([old[at] ^ 1 << at % 8]) + old[at + 1 :]),
    Damage("half of", lambda old, at: old[: len(old) // 2]),
    Damage("nothing left of", lambda old, at: b""),
    GONE,
]


def disturb(disturber: Disturber, total: int) -> None:
    """Let things go wrong until `total` did: half of them in calls, half of them on the disk."""
    while (done := disturber.done("fault")) < total:
        if done % 2 == 0:
            action, kinds, value = WRONG[done // 2 % len(WRONG)]
            work, at = disturber.draw(kinds)
            _fail(disturber, work, Fault(action, kinds, at, value))
        else:
            disturber.random.choice([_damage_input, _damage_work])(disturber, disturber.draw(CHANGES)[0])


def _fail(disturber: Disturber, work: Work, fault: Fault) -> None:
    disturber.box.restore(work.after)
    ended = disturber.box.run(work.arguments, fault)
    if not ended.events:  # what a run reads is not always the same to the last event
        return
    name = f"{fault.action.name} {errno.errorcode.get(fault.value, fault.kinds.name)}"
    story = [f"{name} at {fault.at}: {disturber.words(ended)}"]
    disturber.counts[f"fault: {work.name}: {name}"] += 1
    now = disturber.whole(work, story, ended)
    if ended.status == 0:
        shown = {name: content for name, content in now.items() if not contents.hidden(name)}  # the rest: see `finish`
        for wrong in contents.differences(shown, disturber.after[work.name]):
            disturber.found(work, story, f"exit 0, but {wrong}", ended.output)
    else:
        _explained(disturber, work, story, ended, [event.path for event in ended.events])
    disturber.finish(work, story)


def _explained(disturber: Disturber, work: Work, story: list[str], ended: Ended, paths: list[str]) -> None:
    """Look whether a message says which file it is about."""
    if ended.status not in (1, 2):
        disturber.found(work, story, f"ends with {ended.status}", ended.output)
    elif paths and not any(name in ended.output for path in paths for name in _public_names(path)):
        disturber.found(work, story, f"exit {ended.status}, but no word of {paths[0]}", ended.output)


def _public_names(path: str) -> list[str]:
    """What a message may call a file: by its name, or its directory if that is what it speaks of as a whole.

    Of what is only there for a moment that is the place that it is in, and the name that it was to get.
    """
    parts = [part for part in path.split("/") if not re.match(r"\.mode-|tmp\w{8}", part)]
    parts = [re.sub(r"^\.(.*)\.(new|work|replaced|partial)$", r"\1", part) for part in parts]
    return [parts[-1], "/".join(parts[-3:-1])]


def _damage_input(disturber: Disturber, work: Work) -> None:
    """Damage a published file that the command reads."""
    disturber.box.restore(work.after)
    before = disturber.before[work.name]
    published = {place for place in contents.published(before) if f"{place}lors.json" in before}
    read = {event.path for event in disturber.events(work, Kind.OPEN_READ)}
    files = [disturber.box.root / name for name in before if any(name.startswith(place) for place in published)]
    files = [file for file in files if str(file) in read and file.is_file()]
    _damage(disturber, work, [file for file in files if file.name != CARD], "an input")


def _damage_work(disturber: Disturber, work: Work) -> None:
    """Damage a file of an interrupted run."""
    disturber.box.restore(work.after)
    at = disturber.random.randrange(len(disturber.events(work, CHANGES)))
    disturber.box.run(work.arguments, Fault(Action.SIGNAL, CHANGES, at, disturber.random.choice(SIGNALS)))
    hidden = [path for path in disturber.box.root.rglob("*") if path.is_file() and ".partial/" in str(path)]
    _damage(disturber, work, sorted(hidden), f"left by a run killed at {at}")


def _damage(disturber: Disturber, work: Work, files: list[Path], what: str) -> None:
    files = [file for file in files if file.stat().st_size]
    if not files:
        return
    file, damage = disturber.random.choice(files), disturber.random.choice(DAMAGES)
    old = file.read_bytes()
    if file.name == "lors.json" and damage is GONE:  # a model without a manifest is a model like any other
        return
    new = damage.change(old, disturber.random.randrange(len(old)))
    file.unlink() if new is None else file.write_bytes(new)
    name = str(file.relative_to(disturber.box.root))
    story = [f"{damage.name} {name}, {what}"]
    disturber.counts[f"fault: {work.name}: {damage.name} {what.split(' killed')[0]}"] += 1
    ended = disturber.box.run(work.arguments)
    if "Traceback" in ended.output:
        disturber.found(work, story, "a traceback", ended.output)
    if ended.status == 0 and f"left out: {Path(name).parent}" not in ended.output:  # as a report says and goes on
        now = contents.read(disturber.box.root)
        expected = disturber.after[work.name]
        for wrong in contents.differences(now, expected):
            if not wrong.startswith(f"{name} "):
                disturber.found(work, story, f"exit 0, but {wrong}", ended.output)
    elif ended.status:
        _explained(disturber, work, story, ended, [name])
    if (file.read_bytes() if file.is_file() else None) == new and file.parent.is_dir():
        file.write_bytes(old)
    disturber.finish(work, story)

"""``lors bundle`` of a sweep file: what all of its runs need, and the file, which is told where that is."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lors_cli.config.load import override, read
from lors_cli.search import located
from lors_cli.search.study import Study
from lors_cli.search.study_perform import StudySweep
from lors_cli.tools import bundle, taken
from lors_cli.tools.bundle import Request
from lors_cli.tools.taken import Named


def make(path: Path, arguments: list[str], directory: Path, *, with_wheels: bool, force: bool = False) -> None:
    """Collect what the sweep file at `path` needs into `directory`.

    What is not there of starts and evaluations that the file calls optional is left out.

    Raises:
        RequestError: with every problem of the file and its configs, or as of `bundle.assemble`.
        LorsError: pip could not fetch the wheels.

    """
    study = Study(path, arguments)
    sweep = StudySweep(study, None, force=False)
    there = {os.path.expanduser(one.origin): one for one in _local(study, sweep.needed())}
    named: dict[tuple[str, str], Named] = {}
    for section, names in located.SECTIONS.items():
        given = getattr(study.configs, section)
        for name in sorted(study.configs.known(names)):
            if one := there.get(os.path.expanduser(given.get(name, name))):
                named[section, name] = replace(one, key=f"{section}: {name}")
    for start, own in study.file.starts.items():
        if own.config:
            origin = str(path.parent / os.path.expanduser(own.config))
            named["starts", start] = Named(f"starts.{start}.config", origin, None)

    def content(places: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        raw = read(path)
        for text in arguments:
            if text not in study.configs.overrides:
                override(raw, text)
        if isinstance(raw.get("config"), str):
            raw["config"] = read(path.parent / os.path.expanduser(raw["config"]))
        found: dict[str, dict[str, str]] = {section: {} for section in located.SECTIONS}
        for (section, name), place in zip(named, places, strict=True):
            if section == "starts":
                raw["starts"][name]["config"] = place
            else:
                found[section][name] = place
        for section in located.SECTIONS:
            raw.pop(section, None)
        return raw, {"overrides": study.configs.overrides, "located": found, "paths": {}}

    command = ["lors", "bundle", str(path), str(directory), *arguments]
    asked = Request(command, list(named.values()), content, sweep.fetched)
    bundle.assemble(asked, directory, with_wheels=with_wheels, force=force)


def _local(study: Study, configs: list[Any]) -> Iterator[Named]:
    """What the configs and the choice among the points of a grid name on this machine."""
    for config in configs:
        yield from taken.local(config)
    if held_out := study.file.choose.held_out:
        yield from taken.local_rows("choose.held_out", held_out.source("choose.held_out"))

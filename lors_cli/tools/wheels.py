"""The wheels of lors and of all that it depends on, in the versions that are installed here."""

import json
import logging
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement

from lors_cli.errors import LorsError

log = logging.getLogger(__name__)

PACKAGE = "lors_cli"


def download(folder: Path) -> None:
    """Fetch them into `folder`, for ``pip install --no-index --find-links``; for this Python and platform.

    Raises:
        LorsError: pip failed.

    """
    folder.mkdir(parents=True)
    _collect(folder, _source(distribution(PACKAGE)))
    (own,) = folder.glob("*.whl")
    inside = next(path for path in zipfile.Path(own).iterdir() if path.name.endswith(".dist-info"))
    pinned = [f"{one.metadata['Name']}=={one.version}" for one in needed(PathDistribution(inside))]
    log.info("bundle: fetching the wheels of %d packages", len(pinned) + 1)
    _collect(folder, *pinned)


def needed(root: Distribution) -> list[Distribution]:
    """What `root` depends on here, by way of others too, without itself, each once, in the order of the names.

    Raises:
        LorsError: some of it is not installed.

    """
    found: dict[str, Distribution] = {}
    known: dict[str, frozenset[str]] = {}  # the extras of each that were followed
    todo: list[tuple[Distribution, frozenset[str]]] = [(root, frozenset({""}))]
    while todo:
        one, extras = todo.pop()
        for text in one.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                try:
                    other = distribution(requirement.name)
                except PackageNotFoundError:
                    raise LorsError(f"{requirement} is not installed, which {one.name} needs: install it") from None
                name, asked = other.metadata["Name"], frozenset({"", *requirement.extras})
                if not asked <= known.get(name, frozenset()):  # or again, for extras that another one asks for
                    found[name], known[name] = other, asked | known.get(name, frozenset())
                    todo.append((other, asked))
    return [found[name] for name in sorted(found)]


def _source(own: Distribution) -> str:
    """Where lors itself was installed from: a folder, a wheel, or the package index."""
    if origin := own.read_text("direct_url.json"):
        url = json.loads(origin)["url"]
        return unquote(urlsplit(url).path) if url.startswith("file:") else f"{PACKAGE} @ {url}"
    return f"{PACKAGE}=={own.version}"


def _collect(folder: Path, *requirements: str) -> None:
    """Fetch the wheels of `requirements` into `folder`; those that there are none of are built."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--wheel-dir", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise LorsError(f"the wheels could not be fetched: {last}\n  `--no-wheels` makes a bundle without them")

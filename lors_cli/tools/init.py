"""``lors init``: a commented config to start from, out of those that come with the package."""

import re
from pathlib import Path

from lors_cli.artifacts import files
from lors_cli.errors import nearest, request_error

PACKAGE = Path(__file__).parents[1]
FIRST = "quickstart"
SCHEMA = re.compile(r"^# yaml-language-server: .*$", re.MULTILINE)  # names a file of the repository
OWN_SCHEMA = """\
# For an editor that checks keys: `lors schema > schema.json` writes the file that the next line names, beside this one.
# yaml-language-server: $schema=schema.json"""


def configs() -> Path:
    """The folder of configs: the package's own where it was installed, the repository's in a clone.

    Raises:
        RequestError: there is none, which means that the package was built in another way.

    """
    for place in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (place / f"{FIRST}.yaml").is_file():
            return place
    remedy = "install lors with pip, or copy a config from the repository's folder configs"
    raise request_error("NAME", "configs in the package", f"none in {PACKAGE}", remedy)


def names() -> list[str]:
    """What can be asked for: each config, and each folder of them."""
    root = configs()
    found = [path.relative_to(root) for path in sorted(root.rglob("*.yaml"))]
    folders = [path.parent.as_posix() for path in found if path.parent.name]
    return list(dict.fromkeys([FIRST, *folders, *(path.with_suffix("").as_posix() for path in found)]))


def init(name: str, directory: Path) -> list[Path]:
    """Write the config `name`, or all of a folder of that name, into `directory`.

    Returns:
        what was written.

    Raises:
        RequestError: there is no such config, or a file of that name is there.

    """
    root, known = configs(), names()
    name = name.removesuffix(".yaml").strip("/")
    if name not in known:
        raise request_error("NAME", "a name that `lors init --list` prints", name, nearest(name, known))
    sources = sorted((root / name).glob("*.yaml")) if (root / name).is_dir() else [root / f"{name}.yaml"]
    folder = directory / name if (root / name).is_dir() else directory
    targets = {folder / source.name: source for source in sources}
    for target in targets:
        if target.exists() or target.is_symlink():
            remedy = "move it away, or name another directory with --output"
            raise request_error("NAME", f"{target} to be absent", "a file of that name", remedy)
    for target, source in targets.items():
        written = f"configs/{source.relative_to(root).as_posix()}"  # as the comments of the file call it
        target.parent.mkdir(parents=True, exist_ok=True)
        text = SCHEMA.sub(OWN_SCHEMA, source.read_text(encoding="utf-8"))
        files.write_text(target, text.replace(written, str(target)))
    return list(targets)

"""``lors pack`` and ``lors unpack``: a model directory without its zeros, and back, byte for byte.

A packed directory holds what belongs to the model, by the rule of `companions`, and what lors published with it; what
else lies beside it is left out and named. Each ``*.safetensors`` of the model is there as ``*.packed.safetensors``. It
loads nowhere until it is unpacked: its purpose is to be kept and copied.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lors_cli import console
from lors_cli.artifacts import (
    companions,
    compressed_file,
    digest,
    locks,
    model_files,
    publish,
    quantized_files,
    tensors,
)
from lors_cli.artifacts.compressed_file import CompressedFile
from lors_cli.artifacts.files import CARD, write_failed
from lors_cli.artifacts.packed_file import PackedFile, pack_file
from lors_cli.artifacts.tensors import PACKED_SUFFIX
from lors_cli.errors import LorsError, request_error
from lors_cli.models import source
from lors_cli.run import manifest, seal, tidy, use
from lors_cli.run.facts import Packed
from lors_cli.run.job import verified_digest
from lors_cli.run.manifest import Request
from lors_cli.sparsity import packed

log = logging.getLogger(__name__)

ORIGIN = "packed.lors.json"  # in a packed directory: the manifest of the model, if it had one
ORIGIN_CARD = "packed.README.md"  # and its card


def pack(
    model: Path,
    output: Path,
    *,
    layout: str | None = None,
    compress: bool = False,
    trust_remote_code: bool = False,
    force: bool = False,
) -> None:
    """Pack the model directory `model` into the directory `output`; every file is unpacked again and compared.

    Args:
        model: a model directory.
        output: a new directory.
        layout: "2:4" or "bitmask"; whichever is smaller for each weight if left out.
        compress: whether what is packed is compressed too, to be kept and copied only.
        trust_remote_code: whether the model's code goes along; it is not run.
        force: replace what `output` holds.

    Raises:
        RequestError: there is no model, or `output` is taken.
        LorsError: a file could not be read, written or made again.

    """
    source.require_model(model, "MODEL")
    if layout is not None and layout not in packed.LAYOUTS:
        raise request_error("--layout", " or ".join(packed.LAYOUTS), layout, "leave it out for the smaller one")
    started, shards, grid = time.monotonic(), tensors.shards(model), quantized_files.grid_of(model)
    verified_digest(model)
    others = _others(model, code=trust_remote_code)
    _say_left(model, {*others, *(shard.name for shard in shards)})
    with _made(model, output, force=force) as partial, console.progress("pack: file", len(shards)) as advance:
        counts: dict[str, int] = {}
        for shard in shards:
            target = partial / shard.name.replace(".safetensors", PACKED_SUFFIX)
            for kind, count in pack_file(shard, target, layout, grid).items():
                counts[kind] = counts.get(kind, 0) + count
            if compress:
                smaller = partial / shard.name.replace(".safetensors", compressed_file.SUFFIX)
                compressed_file.compress(target, smaller)
                CompressedFile.open(smaller, "OUTPUT").restore(target)  # in its place: what was kept is proved below
            again = partial / shard.name
            PackedFile.open(target, "OUTPUT").unpack(again)  # compares the digest
            again.unlink()
            if compress:
                target.unlink()
            advance(shard.name)
        _copy({name: path for name, path in others.items() if name != CARD}, partial)
        _write_card(others.get(CARD), partial, compressed=compress)
        if (model / manifest.NAME).is_file():
            shutil.copyfile(model / manifest.NAME, partial / ORIGIN)
        measured = digest.of_files(dict(sorted({**others, **{shard.name: shard for shard in shards}}.items())))
        before, after = (sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (model, partial))
        facts = Packed(tensors=counts, bytes=after, unpacked_bytes=before)
        settings = {"layout": layout, **({"compress": True} if compress else {})}
        request = Request(settings=settings, inputs={"model": measured})
        seal.write(partial, manifest.build(partial, "pack", request, facts, time.monotonic() - started))
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    log.info("pack: %.3f GB -> %.3f GB (%.3f), tensors: %s", before / 1e9, after / 1e9, after / before, kinds)
    console.result(str(output))


def unpack(directory: Path, output: Path, *, force: bool = False) -> None:
    """Make the model that was packed into `directory` again, in the directory `output`.

    Raises:
        RequestError: `directory` is not packed, damaged or of another version, or `output` is taken.
        LorsError: what came out is not what was packed.

    """
    compressed = sorted(directory.glob(f"*{compressed_file.SUFFIX}"))
    files = sorted(directory.glob(f"*{PACKED_SUFFIX}"))
    if not files and not compressed:
        got = f"{directory}, which {'has none' if directory.is_dir() else 'does not exist'}"
        raise request_error("PACKED", f"a directory with *{PACKED_SUFFIX} files", got, "name one that `lors pack` made")
    opened = [PackedFile.open(path, "PACKED") for path in files]
    smaller = [CompressedFile.open(path, "PACKED") for path in compressed]
    with _made(directory, output, force=force) as partial:
        with console.progress("unpack: file", len(files) + len(compressed)) as advance:
            for file in opened:
                file.unpack(partial / file.path.name.replace(PACKED_SUFFIX, ".safetensors"))
                advance(file.path.name)
            for one in smaller:
                name = one.path.name.replace(compressed_file.SUFFIX, ".safetensors")
                restored = partial / name.replace(".safetensors", PACKED_SUFFIX)
                one.restore(restored)
                PackedFile.open(restored, "PACKED").unpack(partial / name)
                restored.unlink()
                advance(one.path.name)
        packed_from = manifest.read(directory)
        known = packed_from if packed_from and not seal.damage(directory, packed_from) else None
        _copy(_others(directory), partial)
        if (directory / ORIGIN_CARD).is_file():
            shutil.copyfile(directory / ORIGIN_CARD, partial / CARD)
        elif (directory / CARD).is_file():
            made = [use.packed_card("", compressed=compressed) for compressed in (False, True)]
            if (directory / CARD).read_text(encoding="utf-8") in made:
                (partial / CARD).unlink()  # of a model without a card
        if (directory / ORIGIN).is_file():
            shutil.copyfile(directory / ORIGIN, partial / manifest.NAME)
        if known is None or verified_digest(partial) != known.inputs.get("model"):
            raise LorsError(
                f"{directory} is damaged: a file is missing or was changed since it was packed; copy it again"
            )
    log.info("unpack: %d files, each with the digest of the one that was packed", len(opened) + len(smaller))
    console.result(str(output))


@contextmanager
def _made(source: Path, output: Path, *, force: bool) -> Iterator[Path]:
    """A directory to fill, which becomes `output` when all went well and disappears otherwise.

    Raises:
        RequestError: `output` is taken.
        LorsError: a write failed.

    """
    tidy.outputs([output])
    holds_source = output.resolve() in (source.resolve(), *source.resolve().parents)
    replaceable = force and (output / "config.json").is_file() and not holds_source
    if output.exists() and not replaceable:
        remedy = "name another directory" if force else "name another directory; --force replaces a model directory"
        raise request_error("OUTPUT", "a directory that does not exist yet", f"{output}, which does", remedy)
    with publish.exclusive(output.parent), locks.replacing(output):
        try:
            with publish.written_aside(output) as partial:
                yield partial
        except OSError as error:
            raise write_failed(output, error) from None


def _others(directory: Path, *, code: bool = False) -> dict[str, Path]:
    """The files, by name, that go along with the weights of a model or of a packed one; its manifests do not."""
    made = manifest.read(directory)

    def goes_along(name: str) -> bool:
        if made and (name in made.files if made.files is not None else digest.counts(name)):  # once there was no list
            return True
        return name in (CARD, model_files.INDEX) or companions.belongs(name, trust_remote_code=code)

    found = {n: p for n, p in model_files.files(directory).items() if p.suffix != model_files.WEIGHTS}
    return {
        name: path
        for name, path in found.items()
        if name not in (manifest.NAME, ORIGIN, ORIGIN_CARD) and goes_along(name)
    }


def _say_left(model: Path, taken: set[str]) -> None:
    """Name what lies in the directory of a model and is not part of it; nothing hidden."""
    left = [path.name for path in model.iterdir() if path.is_dir() and path.name not in model_files.FOLDERS]
    left += model_files.files(model).keys() - taken - {manifest.NAME}
    if shown := [repr(name)[1:-1] for name in sorted(left) if not name.startswith((".", "__"))]:
        code = "; --trust-remote-code takes its code too" if any(name.endswith(".py") for name in shown) else ""
        log.warning("%s: left out, because it is not part of the model: %s%s", model, ", ".join(shown), code)


def _write_card(of_model: Path | None, partial: Path, *, compressed: bool) -> None:
    """Write the card of a packed model, and keep that of the model itself beside it."""
    if of_model:
        shutil.copyfile(of_model, partial / ORIGIN_CARD)
    card = of_model.read_text(encoding="utf-8", errors="replace") if of_model else ""
    (partial / CARD).write_text(use.packed_card(card, compressed=compressed), encoding="utf-8")


def _copy(files: dict[str, Path], target: Path) -> None:
    for name, path in files.items():
        (target / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(path, target / name)

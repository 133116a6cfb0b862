"""Cutting an adapter of elastic ranks to some of them, linear by linear, before it is merged."""

from collections.abc import Collection
from typing import Any

from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.config.schema import Config, Merge
from lors_cli.errors import removal, request_error
from lors_cli.models import linears
from lors_cli.run import manifest
from lors_cli.run.graph import Input

KEY = "merge.ranks"


def check(config: Config, section: Merge, adapter: Input, names: Collection[str]) -> None:
    """Check that `merge.ranks` asks for ranks that were trained, of linears that are among `names`.

    Raises:
        RequestError: it does not.

    """
    trained = _elastic_ranks(config, adapter)
    if not trained:
        expected, got = "none, as no part of this adapter was trained by itself", f"{adapter.path}"
        remedy = f"train it with train.elastic_ranks, or {removal(KEY)}"
        raise request_error(KEY, expected, got, remedy)
    for key, rank in _asked(section).values():
        if rank not in trained:
            remedy = f"take one of them, or train with train.elastic_ranks that has {rank}"
            raise request_error(key, f"a rank that was trained: {', '.join(map(str, trained))}", rank, remedy)
    of_each(section, list(names))


def of_each(section: Merge, names: list[str]) -> dict[str, int]:
    """The rank for each of the linears `names` whose adapter is cut.

    Raises:
        RequestError: an entry matches none.

    """
    ranks: dict[str, int] = {}
    for match, (key, rank) in _asked(section).items():
        ranks |= dict.fromkeys(linears.select(names, [match] if match else None, f"{key}.match"), rank)
    return ranks


def cut(content: AdapterFile, section: Merge) -> None:
    """Leave of each adapter in `content` the first rows of lora_A and columns of lora_B; the scale stays."""
    for name, rank in of_each(section, list(content.modules)).items():
        full, alpha = content.of(name)
        named = content.modules[name]
        content.modules[name] = {"lora_A": named["lora_A"][:rank], "lora_B": named["lora_B"][:, :rank]}
        content.scaling[name] = rank, alpha * rank / full


def _asked(section: Merge) -> dict[str, tuple[str, int]]:
    """What the section asks for: patterns, of which the empty one means all, each with its key and its rank."""
    if isinstance(section.ranks, int):
        return {"": (KEY, section.ranks)}
    entries = enumerate(section.ranks or [])
    # a pattern that stands there twice counts where it stands last
    asked: dict[str, tuple[str, int]] = {}
    for place, entry in entries:
        asked.pop(entry.match, None)
        asked[entry.match] = (f"{KEY}[{place}]", entry.rank)
    return asked


def _elastic_ranks(config: Config, adapter: Input) -> list[int]:
    """The elastic ranks with which the adapter was, or will be, trained; none if it was not, or nothing says so."""
    if adapter.maker == "train" and config.train:
        return config.train.elastic_ranks or []
    made: Any = manifest.read(adapter.path)
    recorded = (made.config.get(made.stage) or {}) if made else {}
    return list(recorded.get("elastic_ranks") or [])

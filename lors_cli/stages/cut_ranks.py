"""Cutting an adapter of elastic ranks to some of them, linear by linear, before it is merged."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.config.schema import Config, Merge
from lors_cli.errors import removal, request_error
from lors_cli.models import linears
from lors_cli.run import manifest
from lors_cli.run.graph import Input

KEY = "merge.ranks"


def check(config: Config, section: Merge, adapter: Input, skeleton: PreTrainedModel) -> None:
    """Check that `merge.ranks` asks for ranks that were trained, of linears of the skeleton with an adapter.

    Raises:
        RequestError: it does not.

    """
    trained = elastic_ranks(config, adapter, KEY)
    for key, rank in _asked(section).values():
        if rank not in trained:
            remedy = f"take one of them, or train with train.elastic_ranks that has {rank}"
            raise request_error(key, f"a rank that was trained: {', '.join(map(str, trained))}", rank, remedy)
    adapted = config.train.target_modules if adapter.maker == "train" and config.train else None
    names = [*linears.shapes(skeleton, asked=adapted or ())]
    of_each(section, linears.select(names, adapted, "train.target_modules"))


def of_each(section: Merge, names: list[str]) -> dict[str, int]:
    """The rank for each of the linears `names` whose adapter is cut.

    Raises:
        RequestError: an entry matches none.

    """
    ranks: dict[str, int] = {}
    for match, (key, rank) in _asked(section).items():
        ranks |= dict.fromkeys(linears.select(names, [match] if match else None, f"{key}.match"), rank)
    return ranks


def cut(content: AdapterFile, ranks: Mapping[str, int]) -> None:
    """Leave in `content` of linears' adapters `ranks` rows of lora_A and columns of lora_B, the first ones.

    The scale stays.
    """
    for name, rank in ranks.items():
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


def elastic_ranks(config: Config, adapter: Input, key: str) -> list[int]:
    """The elastic ranks with which the adapter was, or will be, trained.

    Raises:
        RequestError: it was not, or nothing says so, and `key` asks for a part of it.

    """
    if adapter.maker == "train" and config.train:
        ranks = config.train.elastic_ranks
    else:
        made: Any = manifest.read(adapter.path)
        ranks = ((made.config.get(made.stage) or {}) if made else {}).get("elastic_ranks")
    if not ranks:
        expected, got = "none, as no part of this adapter was trained by itself", f"{adapter.path}"
        raise request_error(key, expected, got, f"train it with train.elastic_ranks, or {removal(key)}")
    return list(ranks)

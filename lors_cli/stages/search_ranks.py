"""``merge.rank_search``: which elastic rank each linear is cut to, by the held-out loss of the model as it is merged.

The model is in memory once, as numbers. For each candidate the weights of those linears whose rank has changed are made
anew, exactly as the merge will write them, and the loss of the model with them is measured.
"""

import dataclasses
import gc
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import console
from lors_cli.adapters.attached import place_vectors
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.config.elastic import RankSearch
from lors_cli.config.schema import Config, Merge
from lors_cli.data import once
from lors_cli.evaluation.judged import Sample
from lors_cli.evaluation.perplexity import sample_losses
from lors_cli.models import codes, effort, load
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.models.weights import Weights, open_weights
from lors_cli.run import manifest
from lors_cli.run.graph import Input
from lors_cli.stages import common, cut_ranks, merged_weight
from lors_cli.training import hill_climb
from lors_cli.training.hill_climb import Found, Ranks

log = logging.getLogger(__name__)

KEY = "merge.rank_search"


@dataclasses.dataclass(frozen=True)
class Searching:
    """A search that was checked and can begin.

    Attributes:
        config: of the run.
        section: merge of it.
        search: what it asks for.
        ranks: the elastic ones.
        samples: to measure the loss on.
        settings: that decide what is found, beside the section.

    """

    config: Config
    section: Merge
    search: RankSearch
    ranks: list[int]
    samples: list[Sample]
    settings: dict[str, Any]

    def plan(self, skeleton: PreTrainedModel) -> list[str]:
        """What a dry run says about it."""
        ranks, search = ", ".join(map(str, self.ranks)), self.search
        weights = load.weight_bytes(skeleton, self.config.dtype)
        return [
            f"search of a rank for each linear among {ranks}: {search.evaluations} losses at most, each of"
            f" {len(self.samples)} samples with {self._counted} tokens",
            f"memory of the search: weights {weights / 1e9:.2f} GB, logits 1 GB",
        ]

    def effort(self, skeleton: PreTrainedModel) -> Effort:
        """What it computes and moves."""
        tokens = sum(len(sample.ids) for sample in self.samples)
        return effort.measured(skeleton, self.config.dtype, self.search.evaluations * tokens, 0)

    @property
    def _counted(self) -> int:
        return sum(sample.counted for sample in self.samples)

    def run(self, directory: Path, content: AdapterFile) -> tuple[Ranks, dict[str, Any]]:
        """The ranks for an adapter's `content`, which stays as it is, on the model in `directory`; and facts about it.

        Raises:
            UnmeasurableError: a loss is not finite.
            LorsError: a merged weight is not finite.

        """
        found = self._search(directory, content)
        gc.collect()  # the model is not needed any more
        self._report(found)
        return found.ranks, {"rank_search": found._asdict()}

    def _search(self, directory: Path, content: AdapterFile) -> Found:
        config, search, trust = self.config, self.search, self.config.trust_remote_code
        model = load.load_model(directory, config.dtype, pick_device(config.device), trust_remote_code=trust)
        place_vectors(model, content.vectors)
        skeleton = load.skeleton(directory, trust_remote_code=trust, quantized=True)
        weights = open_weights(directory, skeleton, "merge.input", converts=True)
        candidate = Candidate(model, weights, content, self.section)
        with console.progress("merge: search of ranks", search.evaluations) as advance:

            def loss(ranks: Ranks) -> float:
                candidate.cut_to(ranks)
                mean = math.fsum(sample_losses(model, self.samples)) / self._counted
                advance(f"loss {mean:.4f}")
                return mean

            budget = search.model_dump(include={"evaluations", "neighbours", "changes"})
            return hill_climb.climb(content.modules, self.ranks, loss, seed=config.seed, **budget)

    def _report(self, found: Found) -> None:
        log.info(
            "merge: searched ranks with %d losses: %.4f nats a token with %d everywhere, %.4f with the best",
            found.evaluations,
            found.first_loss,
            hill_climb.middle(self.ranks),
            found.loss,
        )
        places = manifest.by_place({name: {"rank": rank} for name, rank in found.ranks.items()})
        for place, linears in places.items():
            times = Counter(one["rank"] for one in linears)
            log.info("  %-12s %s", place, ", ".join(f"{times[rank]} x {rank}" for rank in sorted(times, reverse=True)))


class Candidate:
    """A `model` in memory whose adapted linears have the weights that a merge with some ranks gives them."""

    def __init__(self, model: PreTrainedModel, weights: Weights, content: AdapterFile, section: Merge) -> None:
        self._model, self._weights, self._content, self._section = model, weights, content, section
        self._ranks: Ranks = {}

    def cut_to(self, ranks: Ranks) -> None:
        """Give the model the weights for these `ranks`."""
        for name, rank in ranks.items():
            if self._ranks.get(name) != rank:
                linear: Any = self._model.get_submodule(name)  # not in place: an adapted head may be tied
                merged = self._merged(name, rank).to(linear.weight.device, linear.weight.dtype)
                linear.weight = nn.Parameter(merged, requires_grad=False)
        self._ranks = dict(ranks)

    def _merged(self, name: str, rank: int) -> Tensor:
        """The weight (R, C) of a linear as merging with this rank gives it."""
        content, section = self._content, self._section
        cut = dataclasses.replace(content, modules={name: content.modules[name]}, scaling=dict(content.scaling))
        cut_ranks.cut(cut, {name: rank})
        quantized = codes.of_linear(self._weights, name)
        if quantized and section.requantize != "none":
            return merged_weight.rounded(cut, name, quantized, section).weight(self._model.dtype)
        return merged_weight.effective(cut, name, self._weights.tensor(f"{name}.weight"), section)


def prepare(config: Config, section: Merge, adapter: Input, model: Input, skeleton: PreTrainedModel) -> Searching:
    """Check a search for the ranks of `adapter` on a `model`, without its weights: its `skeleton`.

    Raises:
        RequestError: the adapter has no elastic ranks, or the data cannot be used.

    """
    search = section.rank_search
    if search is None:
        raise ValueError("a section with rank_search")
    ranks = cut_ranks.elastic_ranks(config, adapter, KEY)
    judged = common.judged(search, KEY)
    load.warn_of_length(skeleton, search.sequence_length, f"{KEY}.sequence_length")
    tokenizer = load.load_tokenizer(model.like, skeleton, trust_remote_code=config.trust_remote_code)
    samples, facts = once.read(("samples", judged, model.like), lambda: judged.samples(tokenizer, model.like))
    source = {"rank_search_source": judged.source.identity(), "rank_search_tokens": facts["token_digest"]}
    return Searching(config, section, search, ranks, samples, {"seed": config.seed, **source})

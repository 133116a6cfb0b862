"""``lors prune`` with a structured method: whole attention groups and MLP channels of the middle blocks go.

The files are read and written one tensor at a time; only a method that needs gradients has the model in memory.
"""

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.artifacts import companions, digest
from lors_cli.config.prune import Prune
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import request_error
from lors_cli.models import effort, linears, load, measure, parts, source, structure, true_sizes
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.models.structure import Structure
from lors_cli.models.weights import open_weights
from lors_cli.pruning import STRUCTURED
from lors_cli.run import request
from lors_cli.run.facts import Pruned
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.sequential.structured import Reduction, choose, options_for
from lors_cli.stages import common

log = logging.getLogger(__name__)

LOADED = "the blocks are alike and config.json has their sizes: plain transformers loads the model"
NOT_LOADED = (
    "config.json cannot say what the blocks have: lors loads the model (lors_cli.api.load), plain transformers not"
)


def prepare(config: Config, section: Prune, graph: Graph) -> Generator[None, None, Job]:
    """Check the request against the model's shapes; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    key = "prune.input" if section.input else "model"
    method, calibration = STRUCTURED[section.method], section.calibration
    if calibration and not method.needs_gradients:
        log.warning("prune.calibration is not used: %s does not look at activations", section.method)
        calibration = None
    if calibration:
        data.check(calibration.dataset.source("prune.calibration.dataset"), calibration.dataset.format)
    device = pick_device(config.device)
    yield
    given = graph.input("prune", "model")
    common.check_plain(given, "prune")
    directory = given.path
    skeleton = load.skeleton(directory, config.dtype, trust_remote_code=config.trust_remote_code)
    linears.check_prunable(skeleton, key)
    if structure.read(directory):
        raise request_error(key, "a whole model", f"{directory}, which is smaller already", "prune the original")
    if source.is_complete(directory):
        open_weights(directory, skeleton, key)
    options, sizes = options_for(section), structure.sizes(skeleton, key)
    parts.check(skeleton, key)
    reduction = Reduction.of(options, skeleton, sizes)
    tokens = None
    if calibration:
        tokens = common.calibration_tokens(config, calibration, directory, skeleton)

    def work(partial: Path) -> Pruned:
        if processes.rank() > 0:
            return Pruned()  # there is too little to share
        model = None
        if method.needs_gradients:
            model = load.load_model(directory, config.dtype, device, trust_remote_code=config.trust_remote_code)
            model.requires_grad_(False)
        kept = choose(method, options, reduction, torch.Generator().manual_seed(config.seed), model, tokens)
        smaller = Structure(reduction.sizes, kept, job.digests["model"], reduction.counts.before)
        structure.write_weights(directory, partial, smaller, skeleton.dtype)
        true = true_sizes.of(skeleton, smaller)
        load.copy_config(directory, partial, skeleton, trust_remote_code=config.trust_remote_code, sizes=true)
        companions.copy(directory, partial, trust_remote_code=config.trust_remote_code)
        facts = measure.model(partial, trust_remote_code=config.trust_remote_code)
        log.info("prune: %s", reduction.summary())
        log.info("prune: %s", LOADED if true else NOT_LOADED)
        measured = {key: facts[key] for key in ("sparsity", "pattern", "modules")}
        parameters = {"before": reduction.counts.before, "after": reduction.counts.after}
        said: dict[str, Any] = {"config_sizes": true} if true else {}
        return Pruned(**measured, parameters=parameters, reduction=reduction.counts.factor, **said)

    job = Job(
        stage="prune",
        inputs={"model": directory},
        settings={
            **request.settings(config, section),
            "calibration_source": calibration.dataset.source("").identity() if calibration else None,
            "calibration_tokens": digest.of_value(tokens.tolist()) if tokens is not None else None,
        },
        config=config,
        work=work,
        plan=[
            f"{section.method}: {reduction.summary()}",
            LOADED if true_sizes.of(skeleton, reduction.structure()) else NOT_LOADED,
            f"trained {reduction.counts.summary_nf4()}",
        ],
        effort=_effort(skeleton, config.dtype, tokens, reduction),
    )
    return job


def _effort(skeleton: PreTrainedModel, dtype: str, tokens: torch.Tensor | None, reduction: Reduction) -> Effort:
    """A pass forward and back, where gradients tell what is removed; the weights are read, and a part is written."""
    size = load.weight_bytes(skeleton, dtype)
    passed = effort.forward(skeleton, tokens.numel() if tokens is not None else 0, head=True)
    return Effort(flops=3 * passed, moved=3.0 * size, kept=size / reduction.counts.factor)

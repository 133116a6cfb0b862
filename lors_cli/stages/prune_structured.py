"""``lors prune`` with a structured method: whole attention groups and MLP channels of the middle blocks go.

The files are read and written one tensor at a time; only a method that needs gradients has the model in memory.
"""

import logging
from collections.abc import Generator
from pathlib import Path

import torch

from lors_cli import processes
from lors_cli.artifacts import companions, digest
from lors_cli.config.prune import Prune
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import request_error
from lors_cli.models import linears, load, measure, source, structure
from lors_cli.models.device import pick_device
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
    options = options_for(section)
    reduction = Reduction.of(options, skeleton, structure.sizes(skeleton, key))
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
        load.copy_config(directory, partial, skeleton, trust_remote_code=config.trust_remote_code)
        companions.copy(directory, partial, trust_remote_code=config.trust_remote_code)
        facts = measure.model(partial, trust_remote_code=config.trust_remote_code)
        log.info("prune: %s", reduction.summary())
        measured = {key: facts[key] for key in ("sparsity", "pattern", "modules")}
        parameters = {"before": reduction.counts.before, "after": reduction.counts.after}
        return Pruned(**measured, parameters=parameters, reduction=reduction.counts.factor)

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
        plan=[f"{section.method}: {reduction.summary()}", f"trained {reduction.counts.summary_nf4()}"],
    )
    return job

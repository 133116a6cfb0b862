"""``lors align``: pruned model -> <output_dir>/aligned, the same model trained further on general text.

LoRAM, Zhang et al. 2025, arXiv 2502.13533: continual pre-training, done once for a pruned model, so that what adapters
learn on it later fits the original too. It is a training whose result is merged at once; zeros stay.
"""

import dataclasses
from collections.abc import Generator
from pathlib import Path

from lors_cli import adapters, processes
from lors_cli.artifacts import adapter_file
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Merge
from lors_cli.errors import removal, request_error
from lors_cli.run import manifest
from lors_cli.run.facts import Aligned, Facts
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.stages import common, merge, train


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check the request as a training; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "align", config.align)
    if config.train and config.train.input:
        remedy = removal("train.input", "align")
        expected = "no train.input beside align, so that train takes the aligned model"
        raise request_error("train.input", expected, config.train.input, remedy)
    preparing = train.job(config, section, graph)
    yield next(preparing)
    model = graph.input("align", "pruned")
    pruned, structured = model.path, model.smaller
    if not structured and not adapters.METHODS[section.method].keeps_zeros:
        keeping = ", ".join(name for name, row in adapters.METHODS.items() if row.keeps_zeros)
        expected = f"a method that keeps zeros ({keeping}), because the model is not made smaller"
        raise request_error("align.method", expected, section.method, "write align.method: lors")
    training = yield from preparing

    def work(partial: Path) -> Facts:
        trained = training.work(partial)
        if processes.rank() > 0:
            return trained
        adapter = scratch(partial) / "adapter"
        adapter.mkdir(exist_ok=True)
        for name in (adapter_file.WEIGHTS, adapter_file.CONFIG):
            (partial / name).replace(adapter / name)
        merged = merge.write(config, pruned, adapter, partial, Merge(dense=structured))
        # what recovery and reports need of the pruned model, which may not be there any more
        made = manifest.read(pruned)
        reduction = made.facts.given.get("reduction") if made else None
        kept = {"reduction": reduction} if reduction is not None else {}
        facts = {**trained.given, **merged.given, **kept}  # both say what was trained beside the linears
        return Aligned(**facts, original=made.original_digest if made else None)

    return dataclasses.replace(training, work=work)

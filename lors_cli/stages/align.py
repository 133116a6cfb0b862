"""``lors align``: pruned model -> <output_dir>/aligned, the same model trained further on general text.

LoRAM, Zhang et al. 2025, arXiv 2502.13533: continual pre-training, done once for a pruned model, so that what adapters
learn on it later fits the original too. It is a training whose result is merged at once; zeros stay.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lors_cli import adapters, console, processes
from lors_cli.artifacts import adapter_file, manifest
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Merge
from lors_cli.errors import RequestError, request_error
from lors_cli.stages import common, merge, train
from lors_cli.stages.job import Job


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check the request as a training; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "align", config.align)
    pruned = common.pruned_directory(config, "align", section.input, earlier)
    structured = common.is_structured(config, pruned, earlier)
    if not structured and not adapters.METHODS[section.method].keeps_zeros:
        keeping = ", ".join(name for name, row in adapters.METHODS.items() if row.keeps_zeros)
        remedy = f"{section.method} would fill the zeros; it is for smaller models (a structured prune.method)"
        raise request_error("align.method", f"a method that keeps zeros: {keeping}", section.method, remedy)
    try:
        training = train.job(config, section, pruned, earlier)
    except RequestError as error:  # the section is checked as one of train
        own = [dataclasses.replace(p, key=p.key.replace("train.", "align.", 1)) for p in error.problems]
        raise RequestError(*own) from None
    output = Path(config.output_dir) / "aligned"

    def work(partial: Path) -> dict[str, Any]:
        facts = training.work(partial)
        if processes.rank() > 0:
            return facts
        adapter = scratch(partial) / "adapter"
        adapter.mkdir(exist_ok=True)
        for name in (adapter_file.WEIGHTS, adapter_file.CONFIG):
            (partial / name).replace(adapter / name)
        merged = merge.write(config, pruned, adapter, partial, Merge(dense=structured))
        return {**facts, **merged, "original": manifest.input_digest(pruned, "model")}

    return dataclasses.replace(
        training, stage="align", output=output, work=work, report=lambda: console.result(str(output))
    )

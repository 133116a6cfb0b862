"""``lors recover``: the adapter of a pruned model -> <output_dir>/recovered, an ordinary PEFT adapter of the original.

LoRAM, Zhang et al. 2025, arXiv 2502.13533: trained on the small model, used on the large one. Of a structured model the
columns of lora_A and the rows of lora_B go back to where they were in the original, with zeros where parts were
removed, so the update of what was removed is zero. Where pruning left zeros in place the shapes are the original's, and
the adapter is taken as it is: its product also updates the weights that the small model had as zeros.
"""

import logging
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lors_cli.artifacts import adapter_file
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError, request_error
from lors_cli.models import identity, linears, load, source, structure
from lors_cli.models.structure import Structure
from lors_cli.run import belongs, manifest
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.run.manifest import Recovered
from lors_cli.stages import common

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check that adapter, pruned model and original belong together, as far as they are there.

    Raises:
        RequestError: they do not.

    """
    common.section(config, "recover", config.recover)
    yield
    original, pruned = (graph.input("recover", name).path for name in ("model", "pruned"))
    key = "recover.adapter"
    adapter, method = graph.adapter("recover")
    if method != "lora":
        remedy = "train with method: lora; what the other methods learn belongs to the zeros of the pruned model"
        raise request_error(key, "a lora adapter", method, remedy)
    if adapter.maker == "train" and config.train and config.train.also:
        raise _trained_beside("train.also", config.train.also)
    if not adapter.maker and not graph.input("recover", "pruned").maker:
        skeleton = load.skeleton(pruned, trust_remote_code=config.trust_remote_code)
        belongs.check(adapter.path, adapter_file.load(adapter.path, key), pruned, skeleton, key)
    job = Job(
        stage="recover",
        inputs={"model": original, "pruned": pruned, "adapter": adapter.path},
        settings={},
        config=config,
        work=lambda partial: _recover(config, original, pruned, adapter.path, job.digests, partial),
        plan=[f"adapter {adapter.path} of {pruned} for {original}"],
    )
    return job


def _recover(
    config: Config, original: Path, pruned: Path, adapter: Path, digests: dict[str, str], partial: Path
) -> Recovered:
    content = adapter_file.load(adapter, "recover.adapter")
    trust = config.trust_remote_code
    if content.vectors:
        raise _trained_beside("recover.adapter", list(content.vectors))
    belongs.check(adapter, content, pruned, load.skeleton(pruned, trust_remote_code=trust), "recover.adapter")
    smaller = structure.read(pruned)
    made = manifest.read(pruned)
    made_from = smaller.original if smaller else made and made.original_digest
    if made_from and made_from != digests["model"]:
        raise _other("model", f"the model that {pruned} was made from", f"{original}, another one (its digest differs)")
    skeleton = load.skeleton(original, trust_remote_code=trust)
    shapes = linears.shapes(skeleton, asked=content.modules)
    if smaller:
        content.modules = {
            module: _scattered(smaller, module, named, shapes.get(module)) for module, named in content.modules.items()
        }
    for module, named in content.modules.items():
        rows, columns = shapes.get(module, (0, 0))
        if named["lora_A"].shape[1] != columns or named["lora_B"].shape[0] != rows:
            raise _other(
                "recover.adapter", f"an adapter that fits {original}", f"{adapter}, which does not fit {module}"
            )
    content.made_on = identity.of(identity.in_files(original, skeleton, "model"))
    base = config.model if config.model != source.BUILT_IN else str(original)
    adapter_file.save(partial, content, base=base, dropout=adapter_file.read_dropout(adapter))
    count = sum(tensor.numel() for named in content.modules.values() for tensor in named.values())
    kind = "structured" if smaller else "same shapes"
    log.info("recover: %d linears, %d parameters (%s)", len(content.modules), count, kind)
    return Recovered(
        method=content.method,
        rank=content.rank,
        alpha=content.alpha,
        linears=len(content.modules),
        parameters=count,
        structured=smaller is not None,
    )


def _trained_beside(key: str, names: Sequence[str]) -> RequestError:
    """The error for norms and biases that were trained on the pruned model, which say nothing about the original's."""
    expected, remedy = "adapters alone: norms and biases learnt what suits the pruned model", "train without train.also"
    return request_error(key, expected, f"trained {names[0]} beside them", remedy)


def _other(key: str, expected: str, got: str) -> RequestError:
    return request_error(key, expected, got, "name the model, the pruned model and the adapter of one experiment")


def _scattered(
    smaller: Structure, module: str, named: dict[str, Tensor], shape: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The tensors of a linear at their places in the original."""
    if shape is None:
        return named
    rows, columns = smaller.rows(module), smaller.columns(module)
    lora_A, lora_B = named["lora_A"], named["lora_B"]
    for kept, size in ((columns, lora_A.shape[1]), (rows, lora_B.shape[0])):
        if kept is not None and len(kept) != size:
            got = f"{module} with {size} of {len(kept)} kept rows or columns"
            raise _other("recover.adapter", "an adapter of this pruned model", got)
    if columns is not None:
        lora_A = torch.zeros(len(lora_A), shape[1], dtype=lora_A.dtype).index_copy_(1, columns, lora_A)
    if rows is not None:
        lora_B = torch.zeros(shape[0], lora_B.shape[1], dtype=lora_B.dtype).index_copy_(0, rows, lora_B)
    return {**named, "lora_A": lora_A, "lora_B": lora_B}

"""``lors recover``: the adapter of a pruned model -> <output_dir>/recovered, an adapter of the original.

LoRAM, Zhang et al. 2025, arXiv 2502.13533: trained on the small model, used on the large one. Of a structured model the
columns of lora_A and the rows of lora_B go back to where they were in the original, with zeros where parts were
removed, so the update of what was removed is zero. Where pruning left zeros in place the shapes are the original's, and
the product B A is taken as it is (C3 of section 3.2), as a LoRA adapter: it also updates the weights that the small
model had as zeros, whether the training did (lora) or not (sqft, lors). With `mask: kept` the mask of the small model
goes with it, and the original gets the update that was trained, s (B A) * M (Algorithm 1, line 19).
"""

import logging
from collections.abc import Collection, Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import adapters
from lors_cli.artifacts import adapter_file
from lors_cli.config.schema import Config, Recover
from lors_cli.errors import RequestError, request_error
from lors_cli.models import identity, linears, load, source, structure
from lors_cli.models.effort import Effort
from lors_cli.models.structure import Structure
from lors_cli.models.weights import open_weights
from lors_cli.run import belongs, manifest
from lors_cli.run.facts import Recovered
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job, verified_digest
from lors_cli.run.lineage import Lineage, Step
from lors_cli.sparsity import mask, placement
from lors_cli.stages import common

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check that adapter, pruned model and original belong together, as far as they are there.

    Raises:
        RequestError: they do not, or the adapter's update is not one that the original can have.

    """
    section = common.section(config, "recover", config.recover)
    yield
    model, small = (graph.input("recover", name) for name in ("model", "pruned"))
    original, pruned = model.path, small.path
    key = "recover.adapter"
    adapter, method = graph.adapter("recover")
    _check_method(section, method, structured=small.smaller)
    if graph.is_on_grid("recover"):
        expected = "an adapter of training without quantization_aware: its update has an effect only on the codes"
        raise request_error("recover.adapter", expected, adapter.path, "train it with quantization_aware: false")
    if adapter.maker == "train" and config.train and config.train.also:
        raise _trained_beside("train.also", config.train.also)
    _check_original(config, graph, small, original)
    if not small.maker:
        skeleton = load.skeleton(pruned, trust_remote_code=config.trust_remote_code, quantized=True)
        content = None if adapter.maker else adapter_file.load(adapter.path, key)
        if content:
            belongs.check(adapter.path, content, pruned, skeleton, key)
        if section.mask == "kept" and source.is_complete(pruned):
            _check_mask(pruned, skeleton, content.modules if content else None)
    job = Job(
        stage="recover",
        inputs={"model": original, "pruned": pruned, "adapter": adapter.path},
        settings={"mask": section.mask} if section.mask != "none" else {},
        config=config,
        work=lambda partial: _recover(config, section, original, pruned, adapter.path, job.digests, partial),
        plan=[f"{method} adapter {adapter.path} of {pruned} for {original}", _plan(section, method)],
        effort=_effort(config, model),
    )
    return job


def _effort(config: Config, original: Input) -> Effort:
    """The original and the pruned model are read for the proof of what is added; of the adapter the rank is guessed."""
    skeleton, rank = original.skeleton(config, quantized=True), config.train.rank if config.train else 16
    numbers = sum(rank * sum(shape) for shape in linears.shapes(skeleton).values())
    return Effort(moved=2.0 * load.weight_bytes(skeleton, config.dtype), kept=4.0 * numbers)


def _plan(section: Recover, method: str) -> str:
    if section.mask == "kept":
        return "mask: kept; the update stays masked, and `lors merge` alone can use it"
    if adapters.METHODS[method].keeps_zeros:
        return "mask: none; the product lora_B @ lora_A as a LoRA adapter, also where the training masked it"
    return "a LoRA adapter, as it was trained"


def _check_method(section: Recover, method: str, *, structured: bool) -> None:
    """Refuse a method whose update the original cannot have, and a mask where there is none.

    Raises:
        RequestError: so it is.

    """
    fitting = [name for name, row in adapters.METHODS.items() if row.recoverable]
    masked = [name for name in fitting if adapters.METHODS[name].keeps_zeros]
    if method not in fitting or (structured and method in masked):
        unmasked = [name for name in fitting if name not in masked]
        names = unmasked if structured else fitting
        reason = (
            "a smaller model has no zeros to keep"
            if structured and method in fitting
            else ("what the other methods learn belongs to the zeros of the pruned model")
        )
        expected = f"an adapter of {' or '.join(names)}"
        remedy = f"train with method: {' or '.join(names)}; {reason}"
        raise request_error("recover.adapter", expected, method, remedy)
    if section.mask == "kept" and structured:
        expected = "mask: none: the update of what structured pruning removed is zero in any case"
        raise request_error("recover.mask", expected, "kept", "write recover.mask: none")
    if section.mask == "kept" and method not in masked:
        expected = f"mask: none: {method} was trained without a mask"
        remedy = f"write recover.mask: none, or train with method: {' or '.join(masked)}"
        raise request_error("recover.mask", expected, "kept", remedy)


def _check_original(config: Config, graph: Graph, small: Input, original: Path) -> None:
    """Refuse a pruned model of another original, or one whose channels stand elsewhere; as far as it can be told.

    Raises:
        RequestError: it is one.

    """
    while small.maker in ("align", "quantize"):
        small = graph.input(small.maker, "pruned")
    if small.maker is None:
        there = source.is_complete(original)
        known = _check_made_from(small.path, original, verified_digest(original) if there else None)
        if not known and there and source.is_complete(small.path):
            _check_places(config, small.path, original)
        return
    if config.prune and config.prune.option("permute"):
        raise _permuted("prune.permute")
    made_from = graph.input("prune", "model").path
    both = made_from, original
    known = all(map(source.is_complete, both)) and made_from.resolve() != original.resolve()
    if known and verified_digest(made_from) != verified_digest(original):
        raise _other("model", f"the model that prune makes smaller, {made_from}", f"{original}, another one")


def _check_made_from(pruned: Path, original: Path, digest: str | None) -> bool:
    """The same for a pruned model that is there, whose files tell whether they tell how it was pruned.

    `digest` is the original's, if it is known yet.
    """
    made, smaller = manifest.read(pruned), structure.read(pruned)
    made_from = smaller.original if smaller else made and made.original_digest
    if made_from and digest and made_from != digest:
        raise _other("model", f"the model that {pruned} was made from", f"{original}, another one (its digest differs)")
    steps = Lineage(run=pruned.absolute().parent).back(Step(pruned, made)) if made else ()
    known = list(steps)
    if any(step.made.settings.get("permute") for step in known):
        raise _permuted("recover.input")
    return smaller is not None or any(step.made.stage == "prune" for step in known)


def _check_places(config: Config, pruned: Path, original: Path, adapted: Collection[str] | None = None) -> None:
    """Refuse a pruned model whose files do not tell how it was made, and whose weights stand elsewhere.

    Of the linears that are `adapted`; before it is known which ones are, those of the first block.

    Raises:
        RequestError: naming the first one.

    """
    trust = config.trust_remote_code
    skeletons = [load.skeleton(path, trust_remote_code=trust, quantized=True) for path in (pruned, original)]
    shapes = [linears.shapes(skeleton) for skeleton in skeletons]
    names = next(iter(linears.by_block(list(shapes[0])).values())) if adapted is None else adapted
    kept, whole = (
        open_weights(path, skeleton, key, converts=True)
        for path, skeleton, key in zip((pruned, original), skeletons, ("recover.input", "model"), strict=True)
    )
    for name in names:
        if shapes[0].get(name) != shapes[1].get(name):
            continue  # refused by its shape
        if found := placement.difference(kept.tensor(f"{name}.weight"), whole.tensor(f"{name}.weight")):
            expected = f"a pruned model whose weights stand where those of {original} stand"
            got = f"{pruned}, without a lors.json that tells how it was pruned, whose {name} has {found}"
            remedy = (
                "name the model that it was made from as `model`, or prune without permuting channels, and train again"
            )
            raise request_error("recover.input", expected, got, remedy)


def _permuted(key: str) -> RequestError:
    """The error for channels that are not where the original has them, so that the update would go elsewhere."""
    expected = "a model that was pruned with permute: false"
    return request_error(key, expected, "permute: true, which moves channels", "prune without permute, and train again")


def _check_mask(pruned: Path, skeleton: PreTrainedModel, adapted: Collection[str] | None) -> None:
    """Refuse a model that has no zeros any more in the linears of its blocks, of those that are `adapted` if known.

    Raises:
        RequestError: it has none.

    """
    weights = open_weights(pruned, skeleton, "recover.input", converts=True)
    names = [name for name in linears.shapes(skeleton) if adapted is None or name in adapted]
    if all(mask.sparsity(weights.tensor(f"{name}.weight")) < mask.DENSE_BELOW for name in names):
        got = f"{pruned}, none of whose {len(names)} adapted linears has zeros"
        remedy = "name the pruned model that the adapter was trained on, or write recover.mask: none"
        raise request_error("recover.mask", "none, or a pruned model whose zeros are there", got, remedy)


def _recover(
    config: Config,
    section: Recover,
    original: Path,
    pruned: Path,
    adapter: Path,
    digests: dict[str, str],
    partial: Path,
) -> Recovered:
    content = adapter_file.load(adapter, "recover.adapter")
    trust = config.trust_remote_code
    if content.vectors:
        raise _trained_beside("recover.adapter", list(content.vectors))
    small = load.skeleton(pruned, trust_remote_code=trust, quantized=True)
    belongs.check(adapter, content, pruned, small, "recover.adapter")  # again, as earlier stages may have made them
    if not _check_made_from(pruned, original, digests["model"]):
        _check_places(config, pruned, original, content.modules)
    smaller = structure.read(pruned)
    _check_method(section, content.method, structured=smaller is not None)
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
    trained, content.method = content.method, section.makes
    count = sum(tensor.numel() for named in content.modules.values() for tensor in named.values())
    if section.mask == "kept":
        _check_mask(pruned, small, content.modules)
        weights = open_weights(pruned, small, "recover.input", converts=True)
        for module, named in content.modules.items():
            named["mask"] = mask.to_bits(weights.tensor(f"{module}.weight") != 0)
    content.made_on = identity.of(identity.in_files(original, skeleton, "model"))
    base = config.model if config.model != source.BUILT_IN else str(original)
    adapter_file.save(partial, content, base=base, dropout=adapter_file.read_dropout(adapter))
    kind = "structured" if smaller else f"same shapes, mask: {section.mask}"
    log.info("recover: %d linears, %d parameters (%s)", len(content.modules), count, kind)
    return Recovered(
        method=content.method,
        rank=content.rank,
        alpha=content.alpha,
        linears=len(content.modules),
        parameters=count,
        structured=smaller is not None,
        trained=trained,
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

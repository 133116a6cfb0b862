"""``lors merge``: pruned model + adapter -> <output_dir>/merged, shard by shard, with the mask proved on the files.

A recovered adapter goes into the original, which has no zeros to keep; one with a mask of its own (recover.mask: kept)
leaves what pruning had removed as it is.

The proof reads what was written: for every linear of the blocks, no position that is zero in the pruned model may be
nonzero in the merged one, every N:M pattern must hold, and every zero must be +0.0. Everything else is as it was, byte
for byte, apart from an adapted head and the norms and biases that were trained.
"""

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import console
from lors_cli.adapters import MASKED, ON_DISK
from lors_cli.artifacts import adapter_file, companions, model_files, quantized_files, tensors
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.config.schema import Config, Merge
from lors_cli.errors import LorsError, removal, request_error
from lors_cli.models import effort, linears, load, measure, untie
from lors_cli.models.effort import Effort
from lors_cli.models.weights import Weights, open_weights
from lors_cli.quantization.stored import PACKED
from lors_cli.run import belongs
from lors_cli.run.facts import Merged
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job
from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern
from lors_cli.stages import common, cut_ranks, merge_gptq, merge_quantized, merged_weight, search_ranks
from lors_cli.stages.merge_gptq import Solving
from lors_cli.stages.search_ranks import Searching

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check that model and adapter belong together.

    Raises:
        RequestError: they do not, or merging would destroy zeros without being asked to.

    """
    section = config.merge or Merge()
    yield
    model = graph.input("merge", "pruned")
    adapter, method = graph.adapter("merge")
    if graph.merges_recovered or method == MASKED:  # into the original, which has no mask to keep
        if section.apply_mask:
            expected = "false: the original, which gets the recovered adapter, has no mask (recover.mask: kept has one)"
            raise request_error("merge.apply_mask", expected, "true", removal("merge.apply_mask"))
        section = section.model_copy(update={"dense": True})
    elif not ON_DISK[method].keeps_zeros and model.smaller:  # a smaller model has no mask either
        section = section.model_copy(update={"dense": not section.apply_mask})
    pruned = model.path
    if adapter.maker == "train" and pruned != graph.input("train", "pruned").path:
        raise request_error("merge.input", "the model that train adapts", pruned, removal("merge.input"))
    if not adapter.maker and not model.maker:
        skeleton, key = model.skeleton(config, quantized=True), "merge.adapter"
        belongs.check(adapter.path, adapter_file.load(adapter.path, key, uniform=False), pruned, skeleton, key)
    _check_zeros_kept(section, method)
    if section.requantize:
        merge_quantized.check(section, model, aware=graph.is_on_grid("merge"))
    skeleton = model.skeleton(config, quantized=True)
    if section.ranks:
        cut_ranks.check(config, section, adapter, skeleton)
    searching = search_ranks.prepare(config, section, adapter, model, skeleton) if section.rank_search else None
    solving = merge_gptq.prepare(config, section, model, skeleton) if section.requantize == "gptq" else None
    kept = section.model_dump(mode="json", include={"dense", "apply_mask", "requantize", "ranks", "rank_search"})
    return Job(
        stage="merge",
        inputs={"pruned": pruned, "adapter": adapter.path},
        settings={**kept, **(searching.settings if searching else {}), **(solving.settings if solving else {})},
        config=config,
        work=lambda partial: write(config, pruned, adapter.path, partial, section, searching, solving),
        plan=[
            f"{method} adapter {adapter.path} into {pruned}, one shard in memory at a time",
            *(searching.plan(skeleton) if searching else []),
            *(solving.plan() if solving else []),
        ],
        effort=effort.merged(_size(config, graph, model, skeleton, section))
        + (searching.effort(skeleton) if searching else Effort())
        + (solving.effort(skeleton) if solving else Effort()),
    )


def _size(config: Config, graph: Graph, model: Input, skeleton: PreTrainedModel, section: Merge) -> float:
    """Bytes of the merged model: as the one that is merged into, or as numbers where its codes become some."""
    if model.grid is None or section.requantize == "none":
        return load.weight_bytes(skeleton, config.dtype if model.maker else "auto")
    if model.maker:
        return graph.kept.get(model.maker, 0.0)
    return sum(path.stat().st_size for path in model_files.weight_files(model.path))


def _check_zeros_kept(section: Merge, method: str) -> None:
    keeps = ON_DISK[method].keeps_zeros
    if keeps and (section.dense or section.apply_mask):
        option = "dense" if section.dense else "apply_mask"
        key = f"merge.{option}"
        raise request_error(key, f"false: {method} keeps the zeros by itself", "true", removal(key))
    if not keeps and not section.dense and not section.apply_mask:
        raise request_error(
            "merge",
            f"dense: true or apply_mask: true, because merging {method} fills the zeros of the pruned model",
            "neither",
            "merge.dense=true accepts a dense model; merge.apply_mask=true masks the update at the merge (LoRA*), which"
            " is not the model that was trained; or train with lors, sqft or spp",
        )


def write(
    config: Config,
    pruned: Path,
    adapter: Path,
    partial: Path,
    section: Merge,
    searching: Searching | None = None,
    solving: Solving | None = None,
) -> Merged:
    """Merge the adapter into the model, shard by shard, into `partial`, and prove it there; facts for the manifest.

    Ranks are looked for before, and then codes, if the section asks for `searching` and `solving`.

    Raises:
        RequestError: they do not belong together.
        LorsError: a file is damaged, a merged weight is not finite, or a zero was lost.

    """
    skeleton = load.skeleton(pruned, trust_remote_code=config.trust_remote_code, quantized=True)
    key = "merge.adapter"
    content = adapter_file.load(adapter, key, uniform=False)
    belongs.check(adapter, content, pruned, skeleton, key)  # again, because an earlier stage may have made them
    ranks, found = searching.run(pruned, content) if searching else (cut_ranks.of_each(section, [*content.modules]), {})
    cut_ranks.cut(content, ranks)
    solved = None
    if solving:
        solved, facts_of_solve = solving.run(pruned, content, partial)
        found |= facts_of_solve
    names = set(linears.shapes(skeleton))
    todo = {*content.modules, *content.vectors}
    weights = open_weights(pruned, skeleton, "merge.input", converts=True)
    untied = untie.tensors_to_copy(weights, skeleton, set(content.modules))
    shards = tensors.shards(pruned)
    with console.progress("merge: shard", len(shards)) as advance:
        for shard in shards:
            merged = _merged_tensors(shard, content, section, names, todo, weights, untied, solved)
            tensors.write(dict(merged), partial / shard.name)
            advance(shard.name)
    if todo:
        raise LorsError(f"{pruned} has no tensor for {len(todo)} trained modules, among them {min(todo)}")
    if shards != [pruned / model_files.SINGLE]:
        (partial / model_files.INDEX).write_bytes((pruned / model_files.INDEX).read_bytes())
    if getattr(skeleton, "lors_untied", False):
        load.copy_config(pruned, partial, skeleton, trust_remote_code=config.trust_remote_code)
    companions.copy(pruned, partial, trust_remote_code=config.trust_remote_code)
    if merge_quantized.is_quantized(weights):
        merge_quantized.record(pruned, partial, section)
    if untied is not None:
        untie.record(partial, untied)
    _prove_others(pruned, partial, names, content, weights)
    facts = found | _prove(pruned, partial, names, weights, content, expect_kept=not section.dense)
    if merge_quantized.is_quantized(weights) and section.requantize != "none":
        facts |= merge_quantized.prove(weights, partial, content, section)
    if content.vectors:
        facts["also"] = list(content.vectors)
    return Merged(method=content.method, rank=content.rank, alpha=content.alpha, **facts)


@torch.no_grad()
def _merged_tensors(
    shard: Path,
    content: AdapterFile,
    section: Merge,
    names: set[str],
    todo: set[str],
    weights: Weights,
    untied: dict[str, str] | None,
    solved: QuantizedFiles | None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one shard after merging; modules that were merged are taken off `todo`."""
    file = tensors.TensorFiles(shard)
    copies = [(copy, stored) for stored, copy in (untied or {}).items() if stored in file.layout]
    for key, stored in [*zip(file.layout, file.layout, strict=True), *copies]:
        if linear := merge_quantized.linear_of(key, weights):
            if section.requantize != "none":
                codes = merge_quantized.merged_codes(key, linear, content, section, weights, solved)
                yield key, file.tensor(key) if codes is None else codes
                todo.discard(weights.by_file[f"{linear}.weight"].removesuffix(".weight"))
                continue
            if key != f"{linear}.{PACKED}":
                continue
            key = f"{linear}.weight"  # its numbers take the place of its codes
            tensor = weights.files.tensor(key)
        else:
            tensor = file.tensor(stored)
        name = weights.by_file.get(key, key)
        module = name.removesuffix(".weight")
        if name in content.vectors:
            tensor = merged_weight.finite(name, content.vectors[name].to(tensor.dtype))
            todo.discard(name)
        elif module in content.modules:
            tensor = merged_weight.effective(content, module, tensor, section)
            todo.discard(module)
        yield key, mask.positive_zeros(tensor) if module in names else tensor


def _prove(
    pruned: Path, merged: Path, names: set[str], weights: Weights, content: AdapterFile, *, expect_kept: bool
) -> dict[str, Any]:
    """Compare the two directories' files, module by module.

    Raises:
        LorsError: a zero was lost, and `expect_kept`; or a weight was changed that the adapter's own mask leaves out.

    """
    modules: dict[str, dict[str, Any]] = {}
    before, after = (quantized_files.files(path) for path in (pruned, merged))
    for key in before.layout:
        module = weights.by_file.get(key, key).removesuffix(".weight")
        if module in names:
            old, new = before.tensor(key), after.tensor(key)
            modules[module] = _compare(old, new)
            if (bits := content.modules.get(module, {}).get("mask")) is not None:
                modules[module]["kept"] = _kept(module, old, new, mask.from_bits(bits, old.shape[1]))
    if names - modules.keys():
        raise LorsError(f"{pruned} has no tensor {min(names - modules.keys())}.weight; nothing was published")
    broken = [module for module, facts in modules.items() if facts["returned"] or facts["broken"]]
    if broken and expect_kept:
        facts = modules[broken[0]]
        raise LorsError(f"the merge lost zeros in {len(broken)} linears, nothing was published; {broken[0]}: {facts}")
    total = measure.total(modules)
    returned = sum(facts["returned"] for facts in modules.values())
    common.log_modules({**total, "modules": modules})
    if expect_kept and total["zeros"]:
        log.info("merge: mask proved on the saved files: %d linears, 0 zeros came back", len(modules))
    elif content.method == MASKED:
        kept = sum(facts.get("kept", 0) for facts in modules.values())
        log.info("merge: mask proved on the saved files: all but %d weights are the original's", kept)
    elif returned >= mask.DENSE_BELOW * total["parameters"]:
        log.warning("merged densely as asked: %d zeros came back", returned)
    else:
        log.info("merge: the model had no mask to keep")
    return {**total, "returned_zeros": returned, "modules": modules}


def _prove_others(pruned: Path, merged: Path, names: set[str], content: AdapterFile, weights: Weights) -> None:
    """Check that of what is no linear of the blocks `names` exactly the adapter's vectors, and an adapted head, differ.

    Raises:
        LorsError: something else has changed, or a vector is not the trained one.

    """
    before, after = (quantized_files.files(path) for path in (pruned, merged))
    for key in before.layout:
        name = weights.by_file.get(key, key)
        if name.removesuffix(".weight") in names | content.modules.keys():
            continue
        old, new = before.tensor(key), after.tensor(key)
        if not _same(new, content.vectors[name].to(old.dtype) if name in content.vectors else old):
            raise LorsError(f"the merge wrote other values of {name} than it should have; nothing was published")
    if content.vectors:
        log.info("merge: %d trained vectors of norms and biases, all else as it was", len(content.vectors))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes, as NaN too is itself."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _kept(module: str, old: Tensor, new: Tensor, kept: Tensor) -> int:
    """How many weights a mask lets an update change; that no other one was changed is checked."""
    if bool(((new != old) & ~kept).any()):
        raise LorsError(f"{module}: the merge changed weights that pruning had removed; nothing was published")
    return int(kept.sum())


def _compare(old: Tensor, new: Tensor) -> dict[str, Any]:
    """The facts about the merged weight `new`, and whether it broke the pattern of the pruned one, `old`."""
    facts = measure.weight(new)
    pattern = mask.detect(old)
    held = ":" not in pattern or mask.holds(new, Pattern.parse(pattern))
    facts["returned"] = int(((old == 0) & (new != 0)).sum())
    facts["broken"] = not held or bool(facts["negative_zeros"])
    return facts

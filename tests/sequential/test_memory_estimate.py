import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.errors import RequestError
from lors_cli.models import linears, load
from lors_cli.models import memory as machine_memory
from lors_cli.sequential import memory_estimate
from lors_cli.sequential.memory_estimate import Work
from lors_cli.sequential.recipe import Recipe, build

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WINDOWS = (16, 32)
STATES = 16 * 32 * 32 * 4
# of the pico model: q and o of 32 x 32, k and v of 16 x 32, gate, up and down of 64 x 32, two norms; in float32
BLOCK = 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32)
OUTSIDE = 4 * (384 * 32 + 32)
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with so many bytes free; this process has 1 MB."""

    def have(host: int = 10**12, device: int = 10**12, disk: int = 10**12) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=host))
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10**6)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (device, device))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk))
        monkeypatch.setattr(machine_memory, "CGROUP_LIMITS", ())

    have()
    return have


@pytest.fixture(scope="module")
def skeleton(dense: Path) -> PreTrainedModel:
    return load.skeleton(dense, "float32")


def make(skeleton: PreTrainedModel, **settings: Any) -> Recipe:
    given = {"method": "wanda", "sparsity": "2:4", "calibration": {"dataset": "python-topics"}, **settings}
    return build(complete(Prune).model_validate(given), linears.all_linears(skeleton), None)


def need(
    skeleton: PreTrainedModel, device: torch.device = CPU, windows: tuple[int, int] | None = WINDOWS, **settings: Any
) -> memory_estimate.Estimate:
    return memory_estimate.estimate(skeleton, Work.of(make(skeleton, **settings)), windows, device)


def test_the_parts_are_those_of_the_shapes(machine: Machine, skeleton: PreTrainedModel) -> None:
    wanda, sparsegpt = need(skeleton), need(skeleton, method="sparsegpt")
    assert (wanda.process, wanda.blocks, wanda.states) == (10**6, 2 * BLOCK, STATES)
    # q with k and v, o, gate with up, down
    assert wanda.statistics == 4 * (32 + 32 + 32 + 64)
    assert sparsegpt.statistics == 4 * (3 * 32**2 + 64**2)
    assert need(skeleton, method="magnitude").statistics == 0
    weights = 2 * BLOCK + OUTSIDE
    assert wanda.disk == weights + 2 * STATES
    assert need(skeleton, windows=None, method="magnitude").disk == weights
    assert wanda.host == 10**6 + 2 * BLOCK + wanda.statistics + wanda.solver + wanda.activations + STATES
    assert wanda.device == 0


def test_tuning_and_the_targets_are_counted(machine: Machine, skeleton: PreTrainedModel) -> None:
    """Weights, gradients and Adam's two in float32, a window's gradients, the zeros, and what a backward pass reads."""
    base, parameters, widths = need(skeleton), BLOCK // 4, 32 + 32 + 32 + 64
    tuned = need(skeleton, tune_blocks={})
    assert tuned.tuning == parameters * (4 * 4 + 4 + 1) + 4 * widths * 32 * 4
    assert tuned.states == 2 * STATES
    assert tuned.host - base.host == STATES + tuned.tuning - base.statistics - base.solver
    assert tuned.disk == base.disk  # the targets of a block are only in memory
    assert need(skeleton, tune_blocks={}, states="disk").disk == base.disk + 2 * STATES
    assert need(skeleton, tune_blocks={"target": "dense"}).disk == base.disk + 2 * STATES
    assert "tuning 0.00 (prune.tune_blocks)" in tuned.lines()[0]


def test_settings_that_need_more_are_estimated_higher(machine: Machine, skeleton: PreTrainedModel) -> None:
    base = need(skeleton)
    assert need(skeleton, windows=(32, 32)).states == 2 * base.states
    assert need(skeleton, windows=(32, 32)).activations == base.activations
    assert need(skeleton, windows=(16, 64)).activations == 2 * base.activations
    assert need(skeleton, sequential="linear") == base  # it takes one window at a time too
    assert need(skeleton, states="disk").host == base.host - STATES
    assert need(skeleton, states="disk").disk == base.disk


def test_several_processes_share_the_states(
    machine: Machine, skeleton: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = need(skeleton)
    monkeypatch.setenv("WORLD_SIZE", "3")
    shared = need(skeleton)
    assert shared.states == 6 * STATES // 16  # the largest share of 16
    assert shared.disk == base.disk


@pytest.mark.parametrize(
    ("device", "host", "expected"),
    [
        (1.001, 1.001, "device"),
        (1.001, 0, "device"),
        (0.999, 1.001, "host"),
        (0, 1.001, "host"),
        (0.999, 0.999, "disk"),
    ],
)
def test_auto_takes_the_first_place_with_room(
    machine: Machine, skeleton: PreTrainedModel, tmp_path: Path, device: float, host: float, expected: str
) -> None:
    """Room beside what the work itself takes, in parts of what the states take."""
    work = need(skeleton, GPU, states="disk")
    machine(
        host=int(work.host - work.process + host * STATES),
        device=int(work.device + device * STATES),
    )
    estimated = need(skeleton, GPU)
    assert estimated.placement == expected
    assert estimated.device == work.device + (STATES if expected == "device" else 0)
    assert estimated.host == work.host + (STATES if expected == "host" else 0)
    memory_estimate.check(estimated, GPU, tmp_path)


@pytest.mark.parametrize(("host", "expected"), [(1.001, "host"), (0.999, "disk")])
def test_auto_without_a_gpu(
    machine: Machine, skeleton: PreTrainedModel, tmp_path: Path, host: float, expected: str
) -> None:
    work = need(skeleton, states="disk")
    machine(host=int(work.host - work.process + host * STATES))
    estimated = need(skeleton)
    assert (estimated.placement, estimated.device) == (expected, 0)
    memory_estimate.check(estimated, CPU, tmp_path)


@pytest.mark.parametrize("asked", ["device", "host", "disk"])
def test_an_asked_place_is_taken_whatever_the_room(machine: Machine, skeleton: PreTrainedModel, asked: str) -> None:
    machine(host=0, device=0)
    assert need(skeleton, GPU, states=asked).placement == asked
    assert need(skeleton, CPU, states=asked).placement == ("disk" if asked == "disk" else "host")


def problems(estimated: memory_estimate.Estimate, device: torch.device, output: Path) -> list[tuple[str, str]]:
    with pytest.raises(RequestError) as caught:
        memory_estimate.check(estimated, device, output)
    return [(problem.key, problem.expected.split(" of free ")[1].split(" on ")[0]) for problem in caught.value.problems]


def test_too_little_of_anything_is_refused(machine: Machine, skeleton: PreTrainedModel, tmp_path: Path) -> None:
    estimated = need(skeleton, GPU, states="host")
    exact = {"host": estimated.host - estimated.process, "device": estimated.device, "disk": estimated.disk}
    machine(**exact)
    memory_estimate.check(estimated, GPU, tmp_path / "not" / "there")
    for short, key, what in (
        ("host", "prune", "host memory"),
        ("device", "prune", "memory"),
        ("disk", "output_dir", "disk space"),
    ):
        machine(**{**exact, short: exact[short] - 1})
        assert problems(estimated, GPU, tmp_path / "not" / "there") == [(key, what)]
    machine(host=0, device=0, disk=0)
    assert len(problems(estimated, GPU, tmp_path)) == 3


def test_the_remedy_names_the_settings(machine: Machine, skeleton: PreTrainedModel, tmp_path: Path) -> None:
    estimated = need(skeleton)
    machine(host=100, disk=100)
    with pytest.raises(RequestError) as caught:
        memory_estimate.check(estimated, CPU, tmp_path)
    memory, disk = caught.value.problems
    for setting in ("prune.calibration.samples", "sequence_length", "prune.states: disk"):
        assert setting in memory.remedy
    assert "0.00 GB" in memory.got
    assert disk.key == "output_dir"
    assert str(tmp_path) in disk.got


def test_what_an_interrupted_run_left_counts_as_free(
    machine: Machine, skeleton: PreTrainedModel, tmp_path: Path
) -> None:
    estimated = need(skeleton)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "states-0").write_bytes(bytes(2**16))
    there = (tmp_path / "work" / "states-0").stat().st_blocks * 512
    machine(disk=estimated.disk - there)
    memory_estimate.check(estimated, CPU, tmp_path)
    machine(disk=estimated.disk - there - 1)
    assert problems(estimated, CPU, tmp_path) == [("output_dir", "disk space")]
    machine(disk=estimated.disk - there)
    assert problems(estimated, CPU, tmp_path / "elsewhere") == [("output_dir", "disk space")]


def test_a_container_may_have_less_than_the_machine(
    machine: Machine, skeleton: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated, limit = need(skeleton), tmp_path / "memory.max"
    monkeypatch.setattr(machine_memory, "CGROUP_LIMITS", (str(tmp_path / "absent"), str(limit)))
    for text, fits in (("max\n", True), (f"{estimated.host}\n", True), (f"{estimated.host - 1}\n", False)):
        limit.write_text(text)
        if fits:
            memory_estimate.check(estimated, CPU, tmp_path)
        else:
            assert problems(estimated, CPU, tmp_path) == [("prune", "host memory")]


def test_the_lines_name_what_decides(machine: Machine, skeleton: PreTrainedModel) -> None:
    memory, disk = need(skeleton, GPU, states="device").lines()
    for word in ("host", "device", "sequence_length", "prune.method", "prune.states", "states"):
        assert word in memory
    assert disk.startswith("disk: ")
    assert ", device 0." not in need(skeleton).lines()[0]

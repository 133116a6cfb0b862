"""What pruning or quantising a model will need of host memory, device memory and disk, and whether that is there."""

import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.config.prune import TuneBlocks
from lors_cli.errors import Problem, RequestError
from lors_cli.models import linears, load, memory
from lors_cli.pruning import least_squares
from lors_cli.sequential.recipe import Recipe
from lors_cli.sequential.states import PLACEMENTS

# What the last linears of an attention and of an MLP are called.
OUTPUTS = ("o_proj", "out_proj", "down_proj", "fc2", "dense")


@dataclass(frozen=True)
class Work:
    """What is done to the blocks.

    Attributes:
        stage: the name of its section.
        states: where that says the calibration states go.
        statistics: what calibration gathers.
        factors: matrices as large as a Hessian that a solve needs.
        fits: whether kept weights are updated.
        tuning: gradient steps on each block.
        codes: whether the weights' codes are kept beside them.
        method: the key of the section that decides about the solver.
        places: whether the section has a key `states`.

    """

    stage: str
    states: str
    statistics: list[str]
    factors: int = 0
    fits: bool = False
    tuning: TuneBlocks | None = None
    codes: bool = False
    method: str = "method"
    places: bool = True

    @classmethod
    def of(cls, recipe: Recipe) -> "Work":
        """The work of pruning."""
        # H, and of its factorisation two at a time
        factors = 3 if recipe.method.statistic == "hessian" else 0
        section = recipe.section
        tuned, codes = section.tune_blocks, recipe.grid is not None
        return cls("prune", section.states, recipe.statistics, factors, bool(recipe.update), tuned, codes)


@dataclass(frozen=True)
class Estimate:
    """Bytes, and where the calibration states go. Each of several processes needs this; `disk` is for all together.

    The statistics and the solver are done with before tuning begins. `states` are also those of the targets.
    """

    process: int
    blocks: int
    statistics: int
    solver: int
    tuning: int
    activations: int
    states: int
    placement: str
    host: int
    device: int
    disk: int
    stage: str = "prune"
    method: str = "method"
    places: bool = True

    def lines(self) -> list[str]:
        """The figures, for people, with the setting that decides each."""
        gpu = f", device {self.device / 1e9:.2f} GB" if self.device else ""
        tuning = f" or tuning {self.tuning / 1e9:.2f} ({self.stage}.tune_blocks)" if self.tuning else ""
        places = f", {self.stage}.states" if self.places else ""
        return [
            f"memory: host {self.host / 1e9:.2f} GB{gpu}: process {self.process / 1e9:.2f}, blocks"
            f" {self.blocks / 1e9:.2f}, statistics {self.statistics / 1e9:.2f} and solver {self.solver / 1e9:.2f}"
            f" ({self.stage}.{self.method}){tuning}, activations {self.activations / 1e9:.2f} (sequence_length), states"
            f" {self.states / 1e9:.2f} on the {self.placement} (samples x sequence_length{places})",
            f"disk: {self.disk / 1e9:.2f} GB while it works",
        ]


def estimate(model: PreTrainedModel, work: Work, windows: tuple[int, int] | None, device: torch.device) -> Estimate:
    """The needs of pruning or quantising the (skeleton) `model`.

    Args:
        model: the skeleton.
        work: what is done to it.
        windows: how many calibration windows of how many tokens; None without calibration.
        device: what computes.

    """
    prefix, blocks = linears.find_blocks(model)
    layout = load.layout(model)
    size = layout[f"{prefix}.0.{next(iter(blocks[0].state_dict()))}"].dtype.itemsize
    block = max(sum(p.numel() for p in one.parameters()) for one in blocks) * size
    fullest = max(map(linears.block_linears, blocks), key=lambda one: sum(_input_widths(one)))
    widths = _input_widths(fullest)
    wide = max(widths)
    largest = _most_together(fullest)
    hessians = "hessian" in work.statistics
    statistics = 4 * sum(w * w if hessians else w for w in widths) if work.statistics else 0
    # the weight in float32 with its errors and scores, or six of some rows
    fitted = 6 * min(largest, least_squares.ROWS * wide) if work.fits else 0
    solver = 4 * (work.factors * wide * wide + max(4 * largest, largest + fitted))
    solver += block // size if work.codes else 0
    count, length = windows or (0, 0)
    hidden = model.config.get_text_config().hidden_size
    activations = length * (4 * wide + 8 * hidden) * size
    tuned = work.tuning
    tuning = _tuning(block // size, sum(widths), length, size) if tuned else 0
    states = (2 if tuned else 1) * -(-count // processes.count()) * length * hidden * size
    most = max(statistics + solver, tuning) + activations
    process = psutil.Process().memory_info().rss
    on_gpu = device.type == "cuda"
    host = process + (block if on_gpu else 2 * block + most)
    on_device = block + most + sum(p.numel() for p in _outside(model, prefix)) * size if on_gpu else 0
    asked = work.states
    placement = (
        _placement(states, memory.free_host() + process - host, memory.free_device(device) - on_device)
        if asked == "auto"
        else asked
    )
    at = placement if on_gpu or placement == "disk" else "host"
    files = 2 if tuned and (placement == "disk" or tuned.target == "dense") else 1
    weights = sum(t.numel() * t.dtype.itemsize for t in layout.values())
    return Estimate(
        process=process,
        blocks=2 * block,
        statistics=statistics,
        solver=solver,
        tuning=tuning,
        activations=activations,
        states=states,
        placement=at,
        host=host + (states if at == "host" else 0),
        device=on_device + (states if at == "device" else 0),
        disk=weights + files * 2 * count * length * hidden * size,
        stage=work.stage,
        method=work.method,
        places=work.places,
    )


def _tuning(parameters: int, widths: int, length: int, size: int) -> int:
    """The bytes to tune a block of so many `parameters`, whose inputs have so many features, in a dtype of `size`."""
    # float32: the weights, their gradients, Adam's two; as the block computes: the gradients of a window, the zeros,
    # and where that is not float32 the weights
    each = 4 * 4 + size + 1 + (size if size < 4 else 0)
    return parameters * each + 4 * widths * length * size  # a Llama block keeps four numbers for each input of a linear


def check(need: Estimate, device: torch.device, output: Path) -> None:
    """Compare the needs with what is there.

    Raises:
        RequestError: something is short; it says what, and which setting to change.

    """
    stage = need.stage
    less = f"lower {stage}.calibration.samples or sequence_length"
    if need.places:
        less += f", or set {stage}.states: disk"
    problems = []
    host, free = need.host - need.process, memory.free_host()
    if host > free:
        problems.append(Problem(stage, f"{host / 1e9:.2f} GB of free host memory", f"{free / 1e9:.2f} GB", less))
    if need.device > memory.free_device(device):
        free = memory.free_device(device)
        problems.append(
            Problem(stage, f"{need.device / 1e9:.2f} GB of free memory on {device}", f"{free / 1e9:.2f} GB", less)
        )
    place = next(path for path in (output, *output.parents) if path.exists())
    there = sum(file.stat().st_blocks * 512 for file in output.rglob("*") if file.is_file()) if place == output else 0
    free = shutil.disk_usage(place).free + there
    if need.disk > free:
        got = f"{free / 1e9:.2f} GB on the file system of {place}"
        problems.append(
            Problem(
                "output_dir",
                f"{need.disk / 1e9:.2f} GB of free disk space",
                got,
                "free space, or set another output_dir",
            )
        )
    if problems:
        raise RequestError(*problems)


def _input_widths(block: dict[str, torch.nn.Linear]) -> list[int]:
    """The widths of the different inputs in a block."""
    return [width for (_, width, _) in _by_input(block)]


def _most_together(block: dict[str, torch.nn.Linear]) -> int:
    """The weights of the linears that are pruned together: those of one input."""
    return max(_by_input(block).values())


def _by_input(block: dict[str, torch.nn.Linear]) -> dict[tuple[str, int, bool], int]:
    """How many weights each input has, as far as names tell: a module's linears share one, apart from its last."""
    sizes: dict[tuple[str, int, bool], int] = defaultdict(int)
    for name, linear in block.items():
        module, _, own = name.rpartition(".")
        sizes[module, linear.in_features, own in OUTPUTS] += linear.weight.numel()
    return sizes


def _outside(model: PreTrainedModel, prefix: str) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(f"{prefix}.")]


def _placement(states: int, host: int, device: int) -> str:
    room = {"device": device, "host": host, "disk": states}
    return next(place for place in PLACEMENTS if states <= room[place])

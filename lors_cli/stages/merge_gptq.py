"""``merge.requantize: gptq``: the codes of a merged quantised model by GPTQ, on the scales that it has.

The engine of ``lors quantize`` takes the blocks of the model with the adapter in it, one after another, and solves for
the codes of the adapted linears; what is zero stays zero. They are kept beside the merged model until that is written.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli.artifacts import publish
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.config.schema import Config, Merge
from lors_cli.models import codes, effort, linears, load
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.models.weights import Weights
from lors_cli.quantization import METHODS
from lors_cli.quantization.grid import Grid, Scales
from lors_cli.run.graph import Input
from lors_cli.run.layout import STAGES
from lors_cli.sequential import memory_estimate, rehearsal
from lors_cli.sequential.memory_estimate import Estimate, Work
from lors_cli.sequential.quantize import Quantizing, Rounding
from lors_cli.stages import merged_weight
from lors_cli.stages.common import Calibrated

log = logging.getLogger(__name__)

KEY = "merge.requantize"


class MergedWeights(Weights):
    """The tensors of a quantised model with the adapter in it, as numbers, by the names of its modules."""

    def __init__(self, directory: Path, model: PreTrainedModel, content: AdapterFile, section: Merge) -> None:
        super().__init__(directory, model)
        self._content, self._section = content, section

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` of the merged model."""
        before, module = super().tensor(name), name.removesuffix(".weight")
        if name in self._content.vectors:
            return self._content.vectors[name].to(before.dtype)
        if module in self._content.modules:
            return merged_weight.effective(self._content, module, before, self._section)
        return before

    def scales(self, linear: str) -> Scales:
        """Those of a linear that is quantised."""
        quantized = codes.of_linear(self, linear)
        if quantized is None:
            raise ValueError(f"a quantised linear, got {linear}")
        return quantized.scales


@dataclasses.dataclass(frozen=True)
class Solving:
    """A pass of GPTQ that was checked and can begin: on `grid`, calibrated on tokens, with what memory it needs."""

    config: Config
    section: Merge
    grid: Grid
    calibrated: Calibrated
    need: Estimate

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the codes, beside the section."""
        decisive = self.calibrated.settings(self.config, self.section)
        return {key: decisive[key] for key in ("calibration", "calibration_source", "calibration_tokens")}

    def plan(self) -> list[str]:
        """What a dry run says about it."""
        count, length = self.calibrated.shape or (0, 0)
        return [f"gptq on the scales of the model, calibration {count} x {length} tokens", *self.need.lines()]

    def effort(self, skeleton: PreTrainedModel) -> Effort:
        """What it computes and moves; what it leaves is taken into the merged model."""
        every = dict.fromkeys(linears.all_linears(skeleton), 1.0)
        dtype, shape = self.config.dtype, self.calibrated.shape
        whole = effort.calibrated(skeleton, dtype, shape, every, hessian=True, fits=False, grid=self.grid)
        return dataclasses.replace(whole, kept=0.0)

    def run(self, directory: Path, content: AdapterFile, partial: Path) -> tuple[QuantizedFiles, dict[str, Any]]:
        """The codes for merging the adapter's `content` into the model in `directory`, and facts about them.

        They are in a folder of `partial` that is not published.

        Raises:
            LorsError: an activation or a weight is not finite.

        """
        device, trust = pick_device(self.config.device), self.config.trust_remote_code
        skeleton = load.skeleton(directory, trust_remote_code=trust, quantized=True)
        weights = MergedWeights(directory, skeleton, content, self.section)
        targets = [name for name in codes.coded(weights) if name in content.modules]
        method = METHODS["gptq"]
        rounding = Rounding(method, method.options(), self.grid, lambda name: _on(weights.scales(name), device))
        solved = publish.scratch(partial) / "gptq"
        solved.mkdir()
        tokens, placement = self.calibrated.tokens, self.need.placement
        record = Quantizing(skeleton, weights, rounding, targets, tokens, device, placement).run(solved)
        made = [fact for block in record.done("quantize") for fact in block["linears"].values()]
        error = sum(fact["error"] for fact in made) / max(len(made), 1)
        log.info("merge: gptq has changed the outputs of %d linears by %.4f on average", len(made), error)
        return QuantizedFiles(solved, self.grid), {"output_error": error}


def _on(scales: Scales, device: torch.device) -> Scales:
    scale, zero_point = scales
    return Scales(scale.to(device), None if zero_point is None else zero_point.to(device))


def prepare(config: Config, section: Merge, model: Input, skeleton: PreTrainedModel) -> Solving:
    """Check the pass on a quantised `model`, without its weights: its `skeleton`.

    Raises:
        RequestError: it cannot be carried out.

    """
    if model.grid is None:
        raise ValueError("a quantised model")
    rehearsal.check(skeleton, KEY, ranked=linears.all_linears(skeleton), leave_out=lambda _: (KEY, "rounding"))
    calibrated = Calibrated.of(config, section.calibration, model.like, skeleton, "merge")
    device = pick_device(config.device)
    work = Work("merge", "auto", ["hessian"], 3, codes=True, method="requantize", places=False)
    need = memory_estimate.estimate(skeleton, work, calibrated.shape, device)
    memory_estimate.check(need, device, publish.partial_directory(STAGES["merge"].output(config.output_dir)))
    return Solving(config, section, model.grid, calibrated, need)

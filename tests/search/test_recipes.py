"""Each recipe of the papers' tables and figures once, from its data to its table, on the pico model and few steps."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file
from typer.testing import Result

from lors_cli.data import hub
from lors_cli.quantization.stored import SHAPE
from tests.offline_hub import ROWS

Lors = Callable[..., Result]
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/reproduce"
COMMON = ["device=cpu", "dtype=float32"]
STEP = ["train.max_steps=1", "train.warmup=0"]
LENGTH = ["train.sequence_length=256", "train.rank=4"]
BATCH = ["train.batch_size=2", "train.micro_batch_size=2"]
FEW = ["prune.calibration={dataset: python-topics, samples: 2, sequence_length: 32}"]
CUT = ["prune.keep_first=0", "prune.keep_last=1"]
ALIGN = [
    f"align.{key}" for key in ("max_steps=1", "warmup=0", "sequence_length=32", "batch_size=2", "micro_batch_size=2")
]
ALPACA = "{name: alpaca, dataset: {path: tatsu-lab/alpaca, format: alpaca}, sampling: random"
HERMES = "{name: in-domain, dataset: {path: teknium/OpenHermes-2.5, split: 'train[-2000:]', format: alpaca}"
ANSWERS = f"eval.perplexity=[{', '.join(f'{one}, sequence_length: 256, samples: 4}}' for one in (ALPACA, HERMES))}]"
TEXT = [
    "eval.perplexity={dataset: {path: python-topics, split: test}, sequence_length: 32, samples: 4}",
    "eval.tasks=[]",
    "eval.preset=null",
]
TASK = "eval.models: [merged], eval.preset: null, eval.tasks: [lors_quiz], eval.perplexity: null"
RATE = "grid={train.learning_rate: [1e-2]}"
HELD_OUT = "choose.held_out={path: runs/loram_quality/held_out.jsonl, limit: 8}"
WRITTEN = [
    "train.dataset={path: runs/loram_quality/train.jsonl, format: text, limit: 20}",
    "align.dataset=python-topics",
    "seeds=[0]",
    "eval.perplexity.samples=4",
    "eval.perplexity.sequence_length=64",
    "train.batch_size=2",
    *ALIGN,
    *STEP,
]
GSM8K = "runs/reproduce/loram_gsm8k/rows.jsonl"
ON_GSM8K = f"train.dataset: {{path: {GSM8K}, format: completion}}, train.max_steps: 1"
SLIMPAJAMA = (
    "train.dataset: {path: DKYoon/SlimPajama-6B, format: text, streaming: true}, train.epochs: null,"
    " train.sequence_length: 32, train.max_tokens: 256, train.batch_size: null, train.batch_tokens: 128,"
    " train.micro_batch_size: 2"
)
ALPACA_STEP = ["train.epochs=null", *STEP, *LENGTH, *BATCH, *FEW, *TEXT]
SPP = ["train.sequence_length=256", *FEW, *TEXT]
SQFT = ["quantize.group_size=16", "train.dataset={path: python-topics, limit: 1}", "train.warmup=0"]
SQFT += ["quantize.calibration={dataset: python-topics, samples: 2, sequence_length: 32}", "merge.ranks=2"]
SQFT += ["train.rank=4", "train.elastic_ranks=[4, 2]", "train.sequence_length=256"]
CURVES = ["only=[llama-2-13b_rand, with-alignment]", "every={train.max_steps: [1]}", "train.warmup=0"]
JOINT = "{quantize: null, prune.quantize: {bits: 4, group_size: 16}, eval.models: [pruned]}"
BITS = ["only=[dense_gptq-int3, half_joint-int4, lora, lors-qa]", f"starts.half_joint-int4.set={JOINT}"]
BITS += [f"quantize.calibration.{key}" for key in ("dataset=python-topics", "samples=2", "sequence_length=32")]
BITS += ["quantize.group_size=16", "seeds=[0]"]
BITS += [f"train.{key}dataset={{path: python-topics, limit: 1}}" for key in ("", "eval_")]
BITS += [f"arms.lora.{RATE}", f"arms.lors-qa.{RATE}", "choose.extend=0", "train.sequence_length=32", "train.rank=4"]
MASKS = ["only=[lora, sqft-kept]", f"arms.lora.{RATE}", f"arms.sqft-kept.{RATE}", "choose.extend=0", HELD_OUT]
TUNED = ["only=[stru, gsm8k-100]", f"arms.gsm8k-100.set={{{ON_GSM8K}}}", "align.rank=4", "train.warmup=0"]
TUNED += [f"set={{align.max_tokens: null, align.max_steps: 1, {TASK}}}"]
# the arguments that leave one row or two of each file, and the name of a row in its table
RECIPES: dict[str, tuple[list[str], str]] = {
    "loram_curves": ([*CURVES, "align.max_tokens=null", *CUT, *ALIGN, *LENGTH, *BATCH, ANSWERS], "with-alignment"),
    "loram_learning_rate": (
        ["only=[llama-2-7b, lora]", "every={train.learning_rate: [1e-3]}", *STEP, *LENGTH, *BATCH, ANSWERS],
        "lora",
    ),
    "loram_gsm8k": ([*TUNED, *CUT, *ALIGN[1:], *LENGTH, *BATCH, *FEW], "gsm8k-100"),
    "loram_masks": ([*MASKS, *FEW, *WRITTEN], "sqft-kept"),
    "loram_quality": (["only=[loram]", *CUT, *WRITTEN], "loram"),
    "spp_ablations": (
        ["only=[wanda_2-4, spp-none-zero]", *BATCH, "train.max_steps=1", "train.epochs=null", *SPP],
        "none",
    ),
    "spp_high_sparsity": (
        ["only=[llama-7b_wanda_2-8, llama-7b_dsnot_2-8, lora-masked]", "train.max_steps=1", "train.epochs=null", *SPP],
        "lora-masked",
    ),
    "spp_zero_shot": (["only=[llama-7b_wanda_2-4, spp]", "evaluations={}", *SPP], "spp"),
    "frontier": ([*BITS, *STEP, *FEW, TEXT[0]], "lors-qa"),
    "sqft_pipelines": (
        ["only=[llama-3-8b, sqft, qa-sparsepeft]", *SQFT, *BATCH, *FEW, *TEXT],
        "qa-sparsepeft",
    ),
    "lors_zero_shot": (["only=[llama-2-7b_wanda_2-4, lors]", *ALPACA_STEP], "lors"),
    "lors_initialization": (["only=[llama-2-7b_wanda_2-4, lors-eva]", *ALPACA_STEP], "lors-eva"),
    "lors_slimpajama": (
        ["only=[llama-3-8b_wanda_2-4, sqft]", f"set={{eval.models: [pruned, merged], {SLIMPAJAMA}}}", *FEW, *TEXT],
        "sqft",
    ),
}


@pytest.fixture
def rows_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(address: Any, *, streaming: bool) -> Any:
        row = next(row for name, row in ROWS.items() if name in address.path.lower())
        made = datasets.Dataset.from_list([row] * 40)
        return made.to_iterable_dataset() if streaming else made

    monkeypatch.setattr(hub, "load", load)
    monkeypatch.chdir(tmp_path)


SLOW = {
    "loram_gsm8k",
    "loram_learning_rate",
    "loram_quality",
    "lors_initialization",
    "lors_slimpajama",
    "spp_high_sparsity",
}


@pytest.mark.usefixtures("rows_of_the_hub")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES])
def test_a_recipe_runs(lors: Lors, dense: Path, tmp_path: Path, name: str) -> None:
    arguments, shown = RECIPES[name]
    study, own = FOLDER / f"{name}.yaml", [f"model={dense}"]
    if name == "loram_gsm8k":
        script("gsm8k_rows.sh", [ROWS["gsm8k"] | {"answer": "One <<1+1=2>>and one.\n#### 2"}] * 8, GSM8K)
    if name in ("loram_masks", "loram_quality"):
        script("alpaca_text.sh", [ROWS["alpaca"]] * 8100, "runs/loram_quality")
    elif name != "frontier":
        own = [located(study, dense)]
    lors("sweep", study, *COMMON, *own, *arguments, f"output_dir={tmp_path}/out")
    table = (tmp_path / "out/results.md").read_text()
    assert shown in table
    if name == "sqft_pipelines":
        check_pipelines(lors, tmp_path / "out")
    if name == "frontier":
        check_bits(lors, tmp_path / "out", dense)


def check_bits(lors: Lors, out: Path, model: Path) -> None:
    """That the plot's bits are those of the files, and that a LoRA beside its model counts."""
    command = [sys.executable, str(ROOT / "scripts/frontier.py"), str(out), str(out / "bits.png")]
    subprocess.run([*command, "--json", str(out / "bits.json")], check=True)
    points = {point["name"]: point for point in json.loads((out / "bits.json").read_text())}
    assert (out / "bits.png").stat().st_size > 10_000
    dense, sparse = points["dense_gptq-int3 + lora"], points["half_joint-int4 + lors-qa"]
    assert dense["bits"] == 3 + 32 / 16
    assert dense["adapter_bits"] > 0 == sparse["adapter_bits"]
    lors("pack", out / "half_joint-int4/pruned", out / "packed")
    sizes = {name: tensor.nbytes for name, tensor in load_file(out / "packed/model.packed.safetensors").items()}
    weights = load_file(model / "model.safetensors")
    stored = sum(size for name, size in sizes.items() if "_proj." in name and SHAPE not in name)
    numbers = sum(tensor.numel() for name, tensor in weights.items() if "_proj." in name)
    assert sparse["bits"] == pytest.approx(8 * stored / numbers, abs=0.02)


def check_pipelines(lors: Lors, out: Path) -> None:
    """Which model the arms of SQFT's pipelines trained, and what the report calls them."""
    start = out / "llama-3-8b"
    assert list(json.loads((out / "results.json").read_text())["starts"][start.name]) == [
        "dense",
        "pruned",
        "quantized",
    ]
    for arm in ("sqft", "qa-sparsepeft"):
        train = json.loads((start / arm / "adapter/lors.json").read_text())["config"]["train"]
        assert (train["input"], train["base"]) == (str(start / "quantized"), "int4")
    lors("report", out, "--output", out / "report/")
    report = (out / "report/report.md").read_text()
    assert "wanda, gptq int4 g16 |" in report
    assert "wanda, gptq int4 g16 + sqft r=4 quantization-aware" in report


def located(study: Path, dense: Path) -> str:
    """All models of the configs of a sweep file, at one place."""
    text = study.read_text()
    configs = [text, *((study.parent / name).read_text() for name in re.findall(r"config: (\S+\.yaml)", text))]
    names = {name for config in configs for name in re.findall(r"model: (\w[\w.-]+/[\w.-]+)", config)}
    return "models={" + ", ".join(f"{name}: {dense}" for name in sorted(names)) + "}"


def script(name: str, rows: list[Any], target: str) -> None:
    """Run a script that writes rows, in this process's folder."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run([FOLDER / name, "rows.jsonl", target], check=True, env=environment)

"""Every config that is shipped is valid and opens with the command that runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result

from lors_cli import adapters
from lors_cli.config.load import load
from lors_cli.models.reduction import Counts
from tests.models.test_structure import LLAMA, SHAPES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPERS = [path for path in CONFIGS if path.parent.name == "papers"]
LORAM = [path for path in CONFIGS if path.parent.name == "loram" and "llama" in path.stem]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_is_valid_and_names_its_command(path: Path) -> None:
    config = load(path, [])
    assert config.prune is not None
    assert config.train is not None
    assert config.merge is not None
    assert config.eval is not None
    head = path.read_text().split("\nmodel:")[0]
    assert f"lors run {path.relative_to(ROOT)}" in head
    schema = head.rpartition("# yaml-language-server: $schema=")[2]
    assert (path.parent / schema).resolve() == ROOT / "configs/schema.json"


def test_the_papers_settings_are_all_there() -> None:
    assert {path.stem for path in PAPERS} == {
        f"{model}_{pruner}_{pattern}"
        for model in ("llama-2-7b", "llama-3-8b")
        for pruner in ("wanda", "sparsegpt")
        for pattern in ("2-4", "50")
    }


@pytest.mark.parametrize("method", ["lors", "spp", "sqft"])
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_papers_configs_hold_for_each_method(path: Path, method: str) -> None:
    config = load(path, [f"train.method={method}", f"output_dir=runs/{method}"])
    assert config.train is not None
    assert config.eval is not None
    assert config.train.method in adapters.METHODS
    assert (config.train.rank, config.train.samples_per_step) == (16, 32)
    assert config.eval.preset == "lors-paper"


def test_lorams_settings_are_all_there() -> None:
    assert {path.stem for path in LORAM} == {
        f"{model}_{way}"
        for model in ("llama-2-13b", "llama-2-70b", "llama-3.1-70b")
        for way in ("rand", "stru", "semi", "unst")
    }


@pytest.mark.parametrize("path", LORAM, ids=lambda path: path.name)
def test_lorams_configs_have_the_papers_settings(path: Path) -> None:
    """Those of appendix A of arXiv 2502.13533."""
    config = load(path, [])
    prune, align, train = config.prune, config.align, config.train
    assert prune and align and train and config.recover and config.eval  # noqa: PT018 - for mypy
    model, way = path.stem.split("_")
    structured = way in ("rand", "stru")
    ratio = {"llama-2-13b": 0.65, "llama-2-70b": 0.75, "llama-3.1-70b": 0.85}[model]
    zeros = {"semi": "4:8", "unst": "0.55"}.get(way)
    pruned = prune.model_dump(mode="json")
    assert (pruned["ratio"], pruned["sparsity"]) == (ratio if structured else None, zeros)
    assert (pruned["keep_first"], pruned["keep_last"]) == (4, 2)
    assert structured or adapters.METHODS[align.method].keeps_zeros
    # 102,400 rows of each of two corpora
    assert (align.samples_per_step, align.sequence_length) == (128, 512)
    assert align.max_tokens == 2 * 102_400 * 512 == 1600 * 128 * 512
    assert (train.rank, train.max_steps, train.learning_rate) == (8, 400, 1e-3)
    assert train.method == ("lora" if structured else "sqft")  # where shapes stay, the update is masked (C2)
    assert config.recover.mask == "none"  # C3
    assert train.base == ("nf4" if structured and model != "llama-2-13b" else "dense")
    assert (train.samples_per_step, train.sequence_length) == (128, 512)
    assert train.target_modules == LINEARS + ["lm_head"] * model.startswith("llama-2")
    assert config.eval.models == ["dense", "pruned", "tuned", "merged"]
    assert config.eval.preset == "loram-csr"
    out_of_domain, in_domain = config.eval.perplexities.values()
    assert (out_of_domain.dataset.path, out_of_domain.samples) == ("tatsu-lab/alpaca", 2000)
    assert out_of_domain.sampling == "random"
    (source,) = train.sources.values()
    assert (in_domain.dataset.path, source.split, in_domain.dataset.split) == (
        source.path,
        "train[:-2000]",
        "train[-2000:]",
    )
    assert {one.sequence_length for one in (out_of_domain, in_domain)} == {512}
    load(path, ["recover.mask=kept"])


def save_config(model: str, directory: Path) -> None:
    """Write the config.json of one of the paper's models."""
    vocabulary = {"vocab_size": 128256} if "3.1" in model else {}
    LlamaConfig(**{**LLAMA, **SHAPES[model.rsplit("-")[-1]], **vocabulary}).save_pretrained(directory)


@pytest.mark.parametrize(
    ("model", "ratio", "before", "after", "in_nf4"),
    [  # arXiv 2502.13533: the counts of tables 5 and 6, the ratios in NF4 of tables 1 to 4 and figures 7 and 8
        ("llama-2-13b", 0.65, 13015864320, 6005662720, None),
        ("llama-2-70b", 0.65, 68976648192, 28099436544, 4.82),  # printed as 4.28
        ("llama-2-70b", 0.75, 68976648192, 21488738304, 6.27),
        ("llama-2-70b", 0.85, 68976648192, 16272924672, 8.21),
        ("llama-2-70b", 0.95, 68976648192, 9662226432, 13.54),
        ("llama-3.1-70b", 0.85, 70553706496, 17849982976, 7.07),
    ],
)
def test_structured_pruning_leaves_as_many_parameters_as_in_the_paper(
    lors: Callable[..., Result],
    tmp_path: Path,
    model: str,
    ratio: float,
    before: int,
    after: int,
    in_nf4: float | None,
) -> None:
    save_config(model, tmp_path)
    config = ROOT / f"configs/loram/{model}_rand.yaml"
    shown = lors("prune", config, f"model={tmp_path}", f"prune.ratio={ratio}", "--dry-run").stdout
    assert f"{before / 1e9:.2f}B -> {after / 1e9:.2f}B parameters ({before / after:.2f}x, exactly {after:,})" in shown
    assert in_nf4 is None or f"in NF4 {in_nf4}x" in shown


@pytest.mark.parametrize(("way", "ratio"), [("semi", 1.95), ("unst", 2.16)])
def test_zeros_count_as_removed_in_the_papers_ratios(
    lors: Callable[..., Result], tmp_path: Path, tokenizer: PreTrainedTokenizerFast, way: str, ratio: float
) -> None:
    """Its tables 1 to 3, with triangles."""
    save_config("llama-2-13b", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "prune.calibration={dataset: python-topics, samples: 2, sequence_length: 64}"
    config = ROOT / f"configs/loram/llama-2-13b_{way}.yaml"
    shown = lors("prune", config, f"model={tmp_path}", text, "device=cpu", "--dry-run").stdout
    assert f"parameters ({ratio}x" in shown
    assert "which take memory like other numbers" in shown
    assert (
        "without the zeros" not in lors("prune", config, f"model={tmp_path}", text, "recover=null", "--dry-run").stdout
    )


@pytest.mark.parametrize(
    ("original", "sibling", "ratio"), [("13b", "7b", 1.93), ("70b", "13b", 5.30), ("3.1-70b", "3.1-8b", 8.79)]
)
def test_a_smaller_sibling_is_as_many_times_smaller_as_in_the_paper(original: str, sibling: str, ratio: float) -> None:
    """The ratios that its tables 1 to 4 give for LoRA on smaller models."""
    small = {"7b": (4096, 11008, 32, 32, None), "3.1-8b": (4096, 14336, 32, 32, 8)}
    counts = []
    for name in (original, sibling):
        shape: dict[str, Any] = SHAPES.get(name.rpartition("-")[2], {})
        if name in small:
            sizes = dict(zip([*SHAPES["13b"], "num_key_value_heads"], small[name], strict=True))
            shape = {key: size for key, size in sizes.items() if size}
        vocabulary = {"vocab_size": 128256} if name.startswith("3.1") else {}
        with torch.device("meta"):
            counts.append(Counts.of(LlamaForCausalLM(LlamaConfig(**{**LLAMA, **shape, **vocabulary}))))
    assert all(one.factor == 1 for one in counts)
    assert round(counts[0].before / counts[1].before, 2) == ratio

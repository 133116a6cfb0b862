"""docs/papers.md: every command of its tables passes a dry run, by the models' config files and without a network."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

from lors_cli.models import load, source
from lors_cli.search.study import Study
from lors_cli.training import activations
from tests import offline_hub

Lors = Callable[..., Result]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/papers.md"
COMMANDS = [
    command
    for line in PAGE.read_text().splitlines()
    if line.startswith("|")
    for command in re.findall(r"`((?:lors (?!report|bench|inspect)|scripts/)[^`]+)`", line)
]
SWEEPS, OTHERS = ([c for c in dict.fromkeys(COMMANDS) if ("lors sweep" in c) == sweep] for sweep in (True, False))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    offline_hub.use(tmp_path, tokenizer, monkeypatch)


def of_paper(program: str, name: str) -> list[str]:
    """The words of an array that a script has for the paper's scale."""
    return shlex.split((ROOT / program).read_text().partition("paper)")[2].partition(f"{name}=(")[2].partition(")")[0])


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("command", [*SWEEPS, *OTHERS])
def test_a_command_of_the_page_passes_a_dry_run(lors: Lors, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program.endswith("lors_cost.sh"):
        asked = [*of_paper(program, "shape"), "--predict", "--hardware", "a100", "--methods", "lora,lors,sqft,spp"]
        shown = lors("bench", *asked).stdout
        assert "sequence length 2048, rank 64" in shown
        assert "sequence length 512, rank 16" in shown
        return
    if program.endswith("loram_cost.sh"):
        for model in of_paper(program, "models"):
            asked = [*of_paper(program, "common"), f"train.input={model.partition('=')[2]}"]
            assert "writes " in lors("train", "configs/loram/llama-2-13b_stru.yaml", *asked, "--dry-run").stdout
        return
    assert program == "lors"
    if arguments[0] == "sweep" and Path(arguments[1]).is_relative_to("configs"):  # a config with values to combine
        assert "task 0: " in lors(*arguments, "--dry-run", "--task", "0").stdout
    elif arguments[0] == "sweep":  # every row gets its config; the last is also checked against model and data
        last = len(Study(Path(arguments[1]), [text for text in arguments[2:] if "=" in text]).rows) - 1
        assert f"task {last}: " in lors(*arguments, "--dry-run", "--task", last).stdout
    else:
        assert "writes " in lors(*arguments, "--dry-run").stdout


def test_the_page_has_every_table_and_figure() -> None:
    spp, _, lors_part = PAGE.read_text().partition("## LoRS")
    for part, tables, figures in ((spp, range(1, 9), (1, 3, 4)), (lors_part, range(1, 5), range(1, 5))):
        rows = "\n".join(line.split("|")[1] for line in part.splitlines() if line.startswith("|"))
        numbers = {
            kind: set(map(int, re.findall(r"\d+", " ".join(re.findall(rf"{kind}s? ([\d, and]+)", rows)))))
            for kind in ("table", "figure")
        }
        assert set(tables) <= numbers["table"]
        assert set(figures) <= numbers["figure"]
    for sweep in ("spp_zero_shot", "spp_high_sparsity", "spp_ablations", "lors_zero_shot", "lors_slimpajama"):
        assert any(f"{sweep}.yaml" in command for command in COMMANDS)


@pytest.mark.parametrize(
    ("model", "trained", "total", "share"),
    [  # arXiv 2405.16057, table 1
        ("llama-7b", "2.0e+07", "6.8e+09", "2.90"),
        ("llama-13b", "3.1e+07", "1.3e+10", "2.35"),
        ("llama-30b", "6.0e+07", "3.3e+10", "1.83"),
        ("llama-65b", "9.8e+07", "6.5e+10", "1.50"),
        ("Llama-2-70b-hf", "1.1e+08", "6.9e+10", "1.54"),
    ],
)
def test_spp_has_as_many_parameters_as_in_the_paper(
    lors: Lors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    model: str,
    trained: str,
    total: str,
    share: str,
) -> None:
    directory = offline_hub.save_config(model, tmp_path / "model", tokenizer)
    monkeypatch.setattr(source, "_snapshot", lambda *_, **__: directory)
    monkeypatch.setattr(activations, "saved_bytes", lambda *_: 1 << 30)  # as above
    here = [
        "train.dataset={path: rows.jsonl, learn_prompt: true}",
        f"output_dir={tmp_path / 'run'}",
        f"model=hub/{model}",
    ]
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Add.", "output": "3"}\n')
    here[0] = here[0].replace("rows.jsonl", str(tmp_path / "rows.jsonl"))
    config = ROOT / "configs/spp/llama-7b_wanda_2-4.yaml"
    shown = lors("train", config, f"train.input=hub/{model}", "prune=null", *here, "--dry-run").stdout
    own = int(re.findall(r"([\d,]+) trainable parameters", shown)[0].replace(",", ""))
    whole = sum(parameter.numel() for parameter in load.skeleton(directory).parameters())
    assert (f"{own:.1e}", f"{whole + own:.1e}", f"{1000 * own / (whole + own):.2f}") == (trained, total, share)

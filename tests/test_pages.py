"""Each block of code on the pages runs, or a comment before it says why not: <!-- not run: REASON -->.

It runs on a pico model and small texts, which have the names here that the pages give them. What would take long is a
dry run, or a benchmark's prediction. Blocks that need more around them are run by a test of their page, in ELSEWHERE.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lors_cli.benchmark import decode
from lors_cli.cli import app
from lors_cli.config.load import is_sweep, read
from lors_cli.models import source
from lors_cli.yaml12 import parse
from tests import offline_hub, pages, pico
from tests.evaluation.tasks import CHOICE, write_tasks

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
LANGUAGES = {"bash", "python", "yaml", ""}  # the last is what a command prints
# Blocks that a test of their page runs, by how they begin, and that test, which knows how many there are.
ELSEWHERE = {
    ("README.md", "yaml"): "tests/test_readme.py",
    ("README.md", "python"): "tests/test_readme.py",
    ("docs/add-a-method.md", "python"): "tests/test_add_a_method.py",
    ("docs/add-a-method.md", "yaml"): "tests/test_add_a_method.py",
    ("docs/humaneval.md", "yaml\n# humaneval_local.yaml"): "tests/evaluation/test_code_execution.py",
    ("docs/other-trainers.md", "python"): "tests/test_other_trainers.py",
    ("docs/sweep.md", "yaml"): "tests/search/test_study.py",
}


def elsewhere(block: pages.Block) -> list[str]:
    """The test of its page that runs a block."""
    whole = f"{block.language}\n{block.text}"
    return [test for (page, begin), test in ELSEWHERE.items() if page == block.page and whole.startswith(begin)]


RUN = [block for block in BLOCKS if block.language and not block.reason and not elsewhere(block)]
# What the pages name, and what it is here.
HERE = {
    "CONFIG": "config.yaml",
    "path/to/config.json": "model/config.json",
    "max_tokens: 13000000": "max_steps: 1",
    "max_steps=1000": "max_steps=8",
    "max_steps=500": "max_steps=2",
    "max_steps: 500": "max_steps: 2",
    "samples: 128": "samples: 4",
    "--prefetch": "--prefetch --models llama-7b=model",
    "Llama-2-7b-hf: /models/llama-2-7b": "model: model",
    "c4.jsonl.gz: /data/c4.jsonl.gz": "text.jsonl: text.jsonl",
    "generate(...)": "generate(__import__('torch').tensor([[1]]), max_new_tokens=2)",
}
# What makes a command short: a dry run, or the figures of the roofline.
STAGES = ("run", "prune", "train", "merge")
SHORT = {
    **{name: ["--force", "--dry-run"] for name in STAGES},
    "sweep": ["--dry-run"],
    "push": ["--dry-run"],
    "bench": ["--predict", "--hardware", "h100"],
    "generate": ["--max-new-tokens", "2"],
}
FILES = {  # the rows of the files of data, by a part of the name
    "openhermes": ["data/openhermes-held-out.jsonl"],
    "alpaca": [
        *("data/alpaca.jsonl", "data/alpaca/train.jsonl", "data/alpaca_train.jsonl", "data/alpaca_held_out.jsonl"),
    ],
    "": [
        *("c4.jsonl", "c4.jsonl.gz", "data/c4.jsonl.gz", "data/c4_300.jsonl.gz", "data/c4-train.00000-of-1.json.gz"),
        *(
            "rows.jsonl",
            "text.jsonl",
            "fineweb.jsonl",
            "wikitext.jsonl",
            "wikitext2_test.jsonl",
            "data/wikitext2_test.jsonl",
        ),
        "data/wikitext2_raw_test_lines.jsonl.gz",
    ],
}


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the blocks run: files of data, a model, and a run twice."""
    folder = tmp_path_factory.mktemp("pages")
    for row, names in FILES.items():
        text = (json.dumps(offline_hub.ROWS[row]) + "\n") * 90
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (folder / "alpaca.jsonl").write_text('{"instruction": "Add 1 and 2.", "output": "3"}\n' * 8010)  # some are held out
    write_tasks(folder / "tasks")
    (folder / "tasks/my_task.yaml").write_text(json.dumps({"task": "my_task", **CHOICE}))
    pico.make(tokenizer, folder / "model", max_position_embeddings=4096)
    pico.make(tokenizer, folder / "cache" / source.BUILT_IN, max_position_embeddings=4096, num_hidden_layers=8)
    (sweep,) = [b.text for b in BLOCKS if (b.page, b.language) == ("docs/sweep.md", "yaml")]
    (folder / "sweep.yaml").write_text(here(sweep))
    (folder / "other.yaml").write_text(json.dumps(pico.config("model", "runs/other")))
    config = pico.config("model", "runs/x")
    config["train"]["save_optimizer"] = True
    (folder / "config.yaml").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lors("run", "config.yaml")
    shutil.copytree(folder / "runs/x", folder / "runs/example")
    shutil.copytree(folder / "runs/x/adapter", folder / "runs/example/my-adapter")
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    offline_hub.use(folder, tokenizer, monkeypatch)
    monkeypatch.setattr(source, "cache_directory", lambda: folder / "cache")
    monkeypatch.setattr(decode, "ROTATED", 1 << 16)
    monkeypatch.setattr(decode, "TOKENS", 2)


def here(text: str) -> str:
    for written, meant in HERE.items():
        text = text.replace(written, meant)
    return text


def lors(*words: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"lors {shlex.join(words)}: {result.output}"


@cache
def run(command: str) -> None:
    """Run a line of a shell, once: a command of lors, also one that another program starts, or a script."""
    words = shlex.split(here(command), comments=True)
    words = words[next(n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]
    program, *rest = words
    if program in ("torchrun", "accelerate"):
        program, *rest = "lors", *rest[rest.index("lors_cli") + 1 :]
    elif program == "sbatch":
        script, *rest = [word for word in rest if not word.startswith("-")]
        name = Path(script).stem
        assert f"lors {name} " in Path(script).read_text()
        program, rest = "lors", [name, *rest]
    if program.endswith(".sh"):
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(pages.ROOT)}
        subprocess.run([program, *rest], check=True, env={**os.environ, **path})
        return
    assert program == "lors", f"{program} is not run: mark the block with its reason"
    name, *arguments = rest
    if name == "report":
        arguments = [made(word) if word.startswith("runs/") else word for word in arguments]
    short = SHORT.get(name, [])
    if "--decode" in arguments:
        short = ["--rounds", "1"]
    if "--prefetch" in arguments:
        short = []
    elif name == "sweep" and is_sweep(read(Path(arguments[0]))):
        short = [*short, "--task", "0"]  # all rows get their configs; the first is checked against model and data
    lors(name, *arguments, *(word for word in short if word not in arguments))


def made(path: str) -> str:
    """A folder of results, or the one that stands for it here."""
    return path if any(Path(path).glob("**/eval/lors.json")) else "runs/example"


def configs(text: str) -> Iterator[dict[str, Any]]:
    """The config of a block, whose missing parts are those of the pico model; of each line if it is of data sets."""
    content = here(text)
    parts = content.splitlines() if content.startswith("dataset: ") else [content]
    for part in map(parse, parts):
        written = {"train": part} if "dataset" in part else part
        whole: dict[str, Any] = {} if "model" in written else pico.config("model", "runs/yaml")
        for section, value in written.items():
            both = isinstance(value, dict) and isinstance(whole.get(section), dict)
            whole[section] = {**whole[section], **value} if both else value
        if "train" in whole:
            whole["train"]["sequence_length"] = 512
        yield whole


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs(block: pages.Block, folder: Path) -> None:
    if block.language == "bash":
        for line in block.text.replace("\\\n", " ").splitlines():
            run(line)
    elif block.language == "python":
        exec(here(block.text), {})  # noqa: S102 - the page is ours
    else:
        for number, config in enumerate(configs(block.text)):
            name = f"{str(block).replace('/', '-').replace(':', '-')}-{number}.yaml"
            (folder / name).write_text(json.dumps(config))
            run(f"lors run {name}")


def test_each_block_has_a_language_and_each_reason_is_one() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, block
        assert block.reason is None or (block.language and len(block.reason.split()) > 2), block


def test_each_mark_belongs_to_a_block() -> None:
    for page in pages.PAGES:
        marks = re.findall("^<!-- not run", page.read_text(), re.MULTILINE)
        assert len(marks) == sum(block.reason is not None for block in pages.blocks(page)), page


def test_the_tests_of_single_pages_read_them() -> None:
    assert {test for block in BLOCKS for test in elsewhere(block)} == set(ELSEWHERE.values())
    for (page, _), test in ELSEWHERE.items():
        assert Path(page).name in (pages.ROOT / test).read_text()

"""The pages say what is so: README's config and Python run on a pico model, and what the pages name exists."""

import gzip
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from lors_cli import adapters, pruning
from lors_cli.artifacts import adapter_file
from lors_cli.cli import app
from lors_cli.config.load import load
from lors_cli.data import builtin
from lors_cli.run.layout import STAGES
from tests.test_layers import LAYERS, PACKAGE

ROOT = PACKAGE.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.append(ROOT / "scripts/reproduce/README.md")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# What makes the config of the README small; its data files are there, under the names that it has for them.
SMALL = [
    "prune.calibration.samples=4",
    "prune.calibration.sequence_length=32",
    "train.batch_size=4",
    "train.sequence_length=256",
    "eval.perplexity.sequence_length=32",
    "eval.perplexity.samples=4",
    "eval.preset=null",
    "eval.tasks=[]",
]
CONFIG = ["example.yaml", *SMALL]
MODEL = "runs/example/merged"
PLACEHOLDERS = {
    "CONFIG": CONFIG,
    "FILE": CONFIG,
    "RUN_DIR...": ["runs"],
    "PATH": [MODEL],
    "DIRECTORY": [MODEL],
    "MODEL": [MODEL],
    "MODEL...": [MODEL],
    "--prompt": ["--prompt"],
    "TEXT": ["A text", "--max-new-tokens", "2"],
    "PACKED": [f"{MODEL}-packed"],
    "OUTPUT": ["unpacked"],
    "REPO_ID": ["owner/name"],
}
MORE = {
    "sweep": ["train.rank=2,4", "--dry-run"],
    "push": ["--dry-run"],
    "quantize": ["quantize={method: rtn, group_size: 16}"],
    "bench": ["--predict", "--shape", "smollm2-135m", "--hardware", "h100"],
}
# Two are no part of this config; a bundle needs a process in which the hub's libraries are not imported yet.
NOT_HERE = {"align", "recover", "bundle"}


def code(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def table(header: str) -> list[list[str]]:
    """The rows of the table of the README whose first column has this header."""
    _, _, rest = README.read_text().partition(f"\n| {header} |")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def usages() -> list[list[str]]:
    """The commands of the README's table, as words without `lors`."""
    return [shlex.split(re.findall("`(.*?)`", row[0])[0])[1:] for row in table("command")]


def lors(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"lors {shlex.join(arguments)}: {result.output}"
    return result.stdout


@pytest.fixture(scope="module")
def example(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in which the README's config has been run."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "data").mkdir()
    rows = [{"text": text} for text in list(builtin.texts("test"))[:4]]
    tasks = [{"instruction": f"Add {n} and {n}.", "output": f"It is {2 * n}."} for n in range(8)]
    with gzip.open(directory / "data/c4.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name, content in {"wikitext2_test": rows, "alpaca": tasks}.items():
        (directory / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (config,) = code(README, "yaml")
    (directory / "example.yaml").write_text(config.replace("meta-llama/Llama-3.2-1B", str(dense)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        lors("run", *CONFIG)
        yield directory


def test_the_config_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(code(README, "yaml")[0])
    config = load(tmp_path / "example.yaml", [])  # without the overrides that the test runs it with
    assert config.train
    assert (config.model, config.train.samples_per_step, config.train.epochs) == ("meta-llama/Llama-3.2-1B", 32, 3)


def test_the_commands_run(example: Path) -> None:
    """Each as in the table, on what the first one made: the stages are done, and say so."""
    assert usages()[0][0] == "run"
    for name, *words in usages():
        if name not in NOT_HERE:
            given = [word for word in words if not word.startswith("[") and not word.endswith("]")]
            lors(name, *(part for word in given for part in PLACEHOLDERS[word]), *MORE.get(name, []))
    for folder in ("pruned", "adapter", "merged", "eval"):
        assert (example / "runs/example" / folder / "lors.json").is_file()
    assert (example / "unpacked/model.safetensors").read_bytes() == (example / MODEL / "model.safetensors").read_bytes()


def test_the_python_runs(example: Path) -> None:
    (block,) = code(README, "python")
    exec(block, {})  # noqa: S102 - the page is ours
    saved = adapter_file.load(example / "runs/example/my-adapter", "directory")
    assert (saved.method, saved.rank, saved.alpha) == ("lors", 16, 16)


def test_the_table_has_every_command() -> None:
    assert {name for name, *_ in usages()} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text()
    lines = [line for block in code(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for written in lines + re.findall("`([^`\n]+)`", text):
        command = re.match(r"(?:lors|.*-m lors_cli) ([a-z]\w*)(.*)", written)
        if command and "|" not in written:
            assert command[1] in COMMANDS, f"{page}: {written}"
            options = {option for parameter in COMMANDS[command[1]].params for option in parameter.opts}
            for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", command[2].partition("#")[0]):
                assert option in options, f"{page}: {written}: there is no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    paths = re.findall(r"(?<![\w/<>])(?:lors_cli|docs|scripts|configs|tests|\.ci)/[\w./-]*\w", page.read_text())
    assert len(paths) > 10
    for path in set(paths) - {"tests/x/test_y.py", "lors_cli/x/y.py"}:
        assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("pruning", {**pruning.all_methods(), **pruning.PROFILES, **pruning.REPAIRS, **pruning.UPDATES}),
        ("adapter", adapters.METHODS),
    ],
)
def test_every_method_has_its_row_and_its_paper(header: str, rows: dict[str, adapters.Method]) -> None:
    written = {re.findall("`(.*?)`", name)[0]: paper for name, paper, _ in table(header)}
    assert written.keys() == rows.keys()
    for name, row in rows.items():
        for number in re.findall(r"\d{4}\.\d{5}|(?<=openreview )\w+", row.paper):
            assert number in written[name], name


def test_every_folder_has_its_row_in_the_order_of_the_layers() -> None:
    folders = [row[0].strip("`").removeprefix("lors_cli/") for row in table("folder")]
    assert set(folders) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    assert folders == sorted(folders, key=level.__getitem__)


def test_the_picture_is_the_one_that_its_script_draws(tmp_path: Path) -> None:
    def words(file: Path) -> list[str]:
        return [text.text or "" for text in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314

    runpy.run_path(str(ROOT / "scripts/draw_pipeline.py"))["draw"](tmp_path / "pipeline.svg")
    drawn = words(tmp_path / "pipeline.svg")
    assert drawn == words(ROOT / "docs/pipeline.svg"), "run: python scripts/draw_pipeline.py"
    assert {f"{stage.folder}/" for stage in STAGES.values()} <= set(drawn)
    assert set(STAGES) <= set(drawn)


def test_the_picture_can_be_read_on_dark_pages_too() -> None:
    svg = (ROOT / "docs/pipeline.svg").read_text(encoding="utf-8")
    style, drawn = svg[: svg.index("</style>")], svg[svg.index("</style>") :]
    light, dark = (dict(re.findall(r"(--\w+): (#\w+)", part)) for part in style.split("prefers-color-scheme: dark"))
    assert light.keys() == dark.keys() == set(re.findall(r"var\((--\w+)\)", drawn))
    assert all(light[name] != dark[name] for name in light)
    assert not re.search(r"(?:fill|stroke): #", drawn)  # a ground of its own, or a colour that stays

"""Whatever is published is vouched for: any byte of it that changes is noticed by all that read it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lors_cli.artifacts.files import CARD
from lors_cli.errors import LorsError
from lors_cli.reporting.runs import LeftOut, Manifests
from lors_cli.reporting.runs import read as read_run
from lors_cli.run import manifest, seal
from lors_cli.run.job import verified_digest

Lors = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Path:
    """A run with an output of each stage but two."""
    from typer.testing import CliRunner

    from lors_cli.cli import app

    place = tmp_path_factory.mktemp("sealed")
    text = {"dataset": "python-topics", "sequence_length": 32}
    config = {
        "model": str(dense),
        "output_dir": str(place / "run"),
        "device": "cpu",
        "prune": {"method": "magnitude", "sparsity": "2:4"},
        "train": {"method": "lors", "rank": 2, **text, "max_steps": 1, "batch_size": 2},
        "eval": {"perplexity": {**text, "samples": 2}, "models": ["dense", "merged"]},
        "merge": {},
    }
    (place / "config.yaml").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["run", str(place / "config.yaml")])
    assert result.exit_code == 0, result.output
    return place / "run"


@pytest.fixture
def flip() -> Iterator[Callable[[Path, int], None]]:
    """Flip a bit of a file until the test is over."""
    kept: dict[Path, bytes] = {}

    def flipped(path: Path, place: int) -> None:
        content = bytearray(kept.setdefault(path, path.read_bytes()))
        content[place] ^= 1
        path.write_bytes(bytes(content))

    yield flipped
    for path, content in kept.items():
        path.write_bytes(content)


def test_everything_that_is_published_is_in_the_manifest(run: Path) -> None:
    for place in ("pruned", "adapter", "merged", "eval"):
        made = manifest.read(run / place)
        there = {path.relative_to(run / place).as_posix() for path in (run / place).rglob("*") if path.is_file()}
        assert made is not None
        assert made.files is not None
        assert made.files.keys() == there - {manifest.NAME}
        assert seal.damage(run / place, made) is None
    assert "items/dense/perplexity.jsonl.gz" in (manifest.read(run / "eval").files or {})  # type: ignore[union-attr]


def _noticed(place: Path) -> str:
    try:
        verified_digest(place)
    except LorsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("place", ["pruned", "adapter", "merged", "eval"])
def test_a_flipped_bit_of_any_file_is_noticed(run: Path, place: str, flip: Callable[[Path, int], None]) -> None:
    random = Random(place)
    for path in [path for path in (run / place).rglob("*") if path.is_file()]:
        content = path.read_bytes()
        spots = random.choices(range(len(content)), k=12 if path.name == manifest.NAME else 1)
        for spot in spots:
            flip(path, spot)
            noticed = _noticed(run / place)
            assert not noticed or str(run / place) in noticed
            assert not noticed or place != "eval" or isinstance(read_run(run, Manifests()), LeftOut)
            if not noticed and path.name != CARD:  # then it is space between what the manifest says
                assert path.name == manifest.NAME, f"{path}, byte {spot}"
                assert json.loads(path.read_text()) == json.loads(content)
            path.write_bytes(content)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a fact": lambda made: made.update(sparsity=0.25),
    "a setting": lambda made: made["request"]["settings"].update(dense=True),
    "no seal": lambda made: made.pop("seal"),
    "no files": lambda made: made.pop("files"),
    "neither": lambda made: [made.pop(key) for key in ("seal", "files")],
    "no seal, of another version": lambda made: [made.pop("seal"), made["versions"].update(lors_cli="0.1.0")],
    "a file less": lambda made: made["files"].pop("config.json"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_damaged(
    run: Path, edit: str, flip: Callable[[Path, int], None], lors: Lors, write_config: Callable[..., Path]
) -> None:
    path = run / "merged" / manifest.NAME
    made = json.loads(path.read_text())
    flip(path, 0)
    EDITS[edit](made)
    path.write_text(json.dumps(made))
    with pytest.raises(LorsError, match=r"merged/lors.json is damaged .*--force"):
        manifest.read(run / "merged")


NO_MANIFESTS = ["{}", "[]", "", "null", '{"stage": ', "[" * 100_000, '{"stage": 1, "stage": 2}', "\0"]


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_what_is_no_manifest_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(LorsError, match=r"lors.json is damaged .*--force, or delete"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_what_is_no_manifest_is_refused_by_every_reader_and_the_remedies_work(
    text: str, lors: Lors, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, place = (
        write_config(prune={"method": "magnitude", "sparsity": "2:4"}, eval__models=["pruned"]),
        tmp_path / "run",
    )
    lors("prune", config)
    (place / "pruned/lors.json").write_text(text)
    for command in (["prune", config], ["train", config], ["eval", config], ["inspect", place / "pruned"]):
        assert f"{place / 'pruned/lors.json'} is damaged" in lors(*command, status=1).stderr
    assert "is damaged" in lors("push", place / "pruned", "me/it", "--dry-run", status=1).stderr
    (place / "pruned/lors.json").unlink()
    lors("inspect", place / "pruned")  # as it is
    (place / "pruned/lors.json").write_text(text)
    lors("prune", config, "--force")
    lors("inspect", place / "pruned")


def test_a_manifest_that_is_no_file_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "one" / manifest.NAME).mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / manifest.NAME).symlink_to("nowhere")
    for place in ("one", "two"):
        with pytest.raises(LorsError, match="is damaged"):
            manifest.read(tmp_path / place)


def test_an_edited_card_is_sent_as_it_is_and_edited_results_are_not(
    run: Path, lors: Lors, flip: Callable[[Path, int], None]
) -> None:
    flip(run / "merged" / CARD, 5)
    (run / "merged" / CARD).write_text("# Mine\n")
    said = lors("push", run / "merged", "me/it", "--dry-run")
    assert "was edited since lors wrote it" in said.stderr
    assert "# Mine" in said.stdout
    assert "## Results" in said.stdout
    flip(run / "eval/results.md", 200)
    said = lors("push", run / "merged", "me/it", "--dry-run")
    assert "results.md was damaged or edited" in said.stderr
    assert "## Results" not in said.stdout


def test_edited_results_are_not_up_to_date(run: Path, lors: Lors, flip: Callable[[Path, int], None]) -> None:
    config = run.parent / "config.yaml"
    shown = lors("eval", config).stdout
    assert shown.strip() == (run / "eval/results.md").read_text().strip()
    for name in ("results.md", "results.json", "items/dense/perplexity.jsonl.gz"):
        content = (run / "eval" / name).read_bytes()
        flip(run / "eval" / name, -20)
        assert f"{name} was damaged or edited" in lors("eval", config, status=1).stderr
        (run / "eval" / name).write_bytes(content)
    (run / "eval/items/dense/more.jsonl.gz").write_bytes(b"")
    assert "more.jsonl.gz is new" in lors("eval", config, status=1).stderr
    (run / "eval/items/dense/more.jsonl.gz").unlink()


def test_what_version_0_1_made_is_read_and_told_of_once(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    shutil.copytree(run / "merged", tmp_path / "merged")
    path = tmp_path / "merged" / manifest.NAME
    old = json.loads(path.read_text())
    old = {key: value for key, value in old.items() if key not in ("files", "seal")}
    old["versions"]["lors_cli"] = "0.1.0"
    path.write_text(json.dumps(old))
    seal._say_unsealed.cache_clear()
    with caplog.at_level("INFO"):
        assert verified_digest(tmp_path / "merged") == verified_digest(tmp_path / "merged") == old["digest"]
    assert caplog.text.count("have no seal") == 1

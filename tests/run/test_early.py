"""What is wrong with paths is said before torch is imported, and everything else before a model is fetched."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.config.load import load
from lors_cli.errors import RequestError
from lors_cli.models import source
from lors_cli.run import early

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def found(config: Path, *stages: str) -> dict[str, str]:
    """The remedies of what `check` finds, by key."""
    try:
        early.check(load(config, []), stages)
    except RequestError as error:
        return {problem.key: problem.remedy for problem in error.problems}
    return {}


def test_everything_that_does_not_exist_is_named_at_once(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = write_config(
        model="/no/model",
        output_dir=str(tmp_path / "file/run"),
        prune__calibration__dataset="/no/calibration.jsonl",
        train__eval_dataset="/no/held-out.jsonl",
        train__distill={"teacher": "/no/teacher"},
        merge={"adapter": "no/adapter"},
        eval__perplexity__dataset="/no/test.txt",
        eval__models=["dense", "mergd", "./other"],
    )
    missing = {"model", "output_dir", "prune.calibration.dataset", "train.eval_dataset", "train.distill.teacher"}
    assert found(config, "prune", "train", "merge", "eval").keys() == {
        *missing,
        "merge.adapter",
        "eval.perplexity.dataset",
        "eval.models",
    }
    assert found(config, "train").keys() == missing - {"model", "prune.calibration.dataset"}
    assert found(write_config(), "prune", "train", "merge", "eval") == {}


def test_what_a_stage_of_the_run_will_make_need_not_exist(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__input=str(tmp_path / "run/pruned"), eval__models=[str(tmp_path / "run/merged")])
    assert found(config, "prune", "train", "merge", "eval") == {}
    assert found(config, "train").keys() == {"train.input"}
    assert found(config, "merge", "eval").keys() == {"train.input"}


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("model", "{dense}x", "did you mean {dense}?"),
        ("model", "{parent}x/model", "did you mean {dense}?"),
        ("model", "{parent}x/other/one", "did you mean {parent}?"),
        ("train__input", "/no/model", "correct the path"),
        ("eval__models", ["dens"], "did you mean 'dense'?"),
    ],
)
def test_a_remedy_names_what_is_spelt_alike(
    write_config: WriteConfig, dense: Path, key: str, value: str | list[str], remedy: str
) -> None:
    places = {"dense": dense, "parent": dense.parent}
    config = write_config(**{key: value.format(**places) if isinstance(value, str) else value})
    (said,) = found(config, "prune", "train", "eval").values()
    assert remedy.format(**places) in said


def test_torch_is_not_imported_for_it(write_config: WriteConfig) -> None:
    config = write_config(model="/no/model", train__dataset="/no/data.jsonl")
    script = (
        f"import sys; sys.argv = ['lors', 'run', {str(config)!r}]\n"
        "from lors_cli.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or done.stderr.count("expected: ") == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"train__dataset": "ROWS"},
        {"prune__calibration__dataset": "ROWS"},
        {"eval__perplexity__dataset": "ROWS"},
        {"device": "cuda:77"},
        {"train__report_to": ["wandb"]},
        {"eval__backend": "vllm"},
        {"prune__method": "from_mask", "prune__mask": "ROWS", "prune__calibration": ...},
    ],
    ids=lambda changes: min(changes),
)
def test_nothing_is_converted_for_a_request_that_is_wrong(
    lors: Lors,
    write_config: WriteConfig,
    jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    def convert() -> Path:
        raise AssertionError("a model was fetched")

    monkeypatch.setattr(source, "_built_in", convert)
    monkeypatch.setattr(source, "cache_directory", lambda: tmp_path / "cache")
    rows = str(jsonl([{"question": "a"}]))
    config = write_config(
        model=source.BUILT_IN, **{key: rows if value == "ROWS" else value for key, value in changes.items()}
    )
    refused = lors("run", config, status=2)
    assert "expected: " in refused.stderr
    assert "a model was fetched" in lors("run", write_config(model=source.BUILT_IN), status=1).stderr

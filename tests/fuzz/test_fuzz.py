"""Broken configs and odd paths are refused by name, or understood: never a traceback, a hang or a file."""

import warnings
from pathlib import Path

import pytest
from hypothesis import given, seed, settings

from lors_cli import offline
from tests.fuzz import main, runs
from tests.fuzz.cases import Case, cases

PARTS = 6  # of 50 cases each


@pytest.fixture(scope="module")
def root(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The places that cases name."""
    root = tmp_path_factory.mktemp("fuzz")
    runs.build(root, dense)
    return root


@pytest.mark.parametrize("part", range(PARTS))
def test_fuzz(root: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    for name in offline.VARIABLES:  # which eval.offline sets
        monkeypatch.setenv(name, "1")

    @seed(f"tests-{part}")
    @settings(main.SETTINGS, max_examples=main.PART)
    @given(cases(str(root)))
    def ends_well(case: Case) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, which users do not see
            assert (fault := runs.fault(case, root)) is None, f"{fault}\n{case}"

    ends_well()


def test_the_judge_sees_what_is_wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(["run", "CONFIG", "--dry-run"], b"model: 1")
    assert runs.fault(case, root) is None

    def loops(*_: object) -> None:
        while True:
            pass

    def writes(*_: object) -> None:
        (root / "cwd/file").touch()

    def fails(*_: object) -> None:
        raise OSError("bare")

    for broken, said in ((loops, "no answer in"), (fails, "exit 1"), (writes, "it wrote")):
        monkeypatch.setattr("lors_cli.config.load.load", broken)
        assert said in str(runs.fault(case, root, most_seconds=0.5))

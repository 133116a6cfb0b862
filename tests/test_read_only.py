"""A run directory on a disk that can only be read."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests import read_only

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's namespaces")
def test_a_finished_run_is_up_to_date_and_all_else_is_refused(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(prune={"method": "magnitude", "sparsity": 0.5})
    lors("prune", config)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def check() -> None:
        for option in ([], ["--dry-run"]):
            shown = lors("prune", config, *option)
            assert f"{tmp_path}/run/pruned is up to date, nothing to do" in shown.output
            assert "prune.sparsity" in lors("prune", config, "prune.sparsity=0.3", *option, status=2).output.replace(
                "prune: sparsity", "prune.sparsity"
            )
            for refused in (["prune", config, "--force"], ["train", config], ["run", config]):
                assert "cannot be written to" in lors(*refused, *option, status=2).output
        lors("inspect", tmp_path / "run/pruned")

    try:
        assert read_only.within(tmp_path / "run", check) is None
    except OSError as error:
        pytest.skip(str(error))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_the_next_command_settles_what_a_killed_one_left(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(prune={"method": "magnitude", "sparsity": 0.5})
    lors("prune", config)
    run = tmp_path / "run"
    os.rename(run / "pruned", run / ".pruned.replaced")  # killed between the two renames of --force
    lors("train", config, "train.max_steps=1", "train.init=random", "--dry-run")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "lors.log", "pruned"]
    (run / ".pruned.work").mkdir()
    shutil.copytree(run / "pruned", run / ".pruned.replaced")
    lors("inspect", run / "pruned")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "lors.log", "pruned"]

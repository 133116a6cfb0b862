from pathlib import Path

import pytest

from lors_cli.config.load import load
from lors_cli.search import grid, grid_results, results


def test_seeds_are_averaged_and_the_best_setting_is_by_the_mean(config: Path) -> None:
    built = grid.build(config, ["train.rank=2,4,8", "seed=0,1"])
    values = [1.0, 3.0, 1.5, 2.0, 0.5, None]  # rank 8 has the lowest value, but one of its seeds failed
    outcomes = [
        {"values": run.values, "state": "failed" if value is None else "finished", "value": value, "reason": "NaN loss"}
        for run, value in zip(built.runs, values, strict=True)
    ]
    groups = grid_results.seed_groups(built, outcomes)
    assert [group["values"]["train.rank"] for group in groups] == [4, 2, 8]
    assert [group["mean"] for group in groups] == [1.75, 2.0, 0.5]
    assert [group["deviation"] for group in groups] == [pytest.approx(0.125**0.5), pytest.approx(2**0.5), None]
    assert grid_results.best_run(outcomes, groups) == 2
    rows = grid_results.seed_table(built, groups).splitlines()[2:]
    assert "1.7500 ± 0.3536" in rows[0]
    assert "best" in rows[0]
    assert "1 of 2" in rows[2]
    assert "failed" in grid_results.table(built, outcomes, 2).splitlines()[-1]


@pytest.mark.parametrize("argument", ["prune.sparsity=2:4,0.5", "train.learning_rate=1e-5,1e3", "seed=1,2"])
def test_the_best_config_loads_back_to_an_equal_one(config: Path, tmp_path: Path, argument: str) -> None:
    path = tmp_path / "best.yaml"
    for run in grid.build(config, [argument]).runs:
        path.write_text(results.best_yaml(run.config, path, "perplexity 12"))
        assert load(path, []).model_dump() == run.config.model_dump()
        assert path.read_text().startswith(f"# lors run {path}\n")
    if "2:4" in argument:
        assert 'sparsity: "2:4"' in path.read_text() or '"0.5"' in path.read_text()

from functools import partial
from pathlib import Path

from lors_cli.search import grid
from tests.search import conftest
from tests.search.conftest import WriteConfig
from tests.search.test_sweep import NAMES, RATES

problems = partial(conftest.problems, grid.build)


def test_a_grid_is_the_product_of_its_axes_in_their_order(config: Path, tmp_path: Path) -> None:
    built = grid.build(config, ["train.rank=2,4", "train.alpha=8", RATES])
    assert [run.values for run in built.runs] == [
        {"train.rank": rank, "train.learning_rate": rate} for rank in (2, 4) for rate in (1e-2, 3e-3)
    ]
    assert [run.directory.name for run in built.runs[:2]] == [f"rank=2,{name}" for name in NAMES]
    assert {run.train.alpha for run in built.runs} == {8}
    assert built.runs[0].config.output_dir == str(tmp_path / "run/sweep" / built.runs[0].directory.name)
    assert [run.stages for run in built.runs] == [["train"]] * 4
    assert {run.train.input for run in built.runs} == {str(tmp_path / "run/pruned")}


def test_an_axis_of_the_pruning_prunes_in_every_run(config: Path) -> None:
    built = grid.build(config, ["prune.method=wanda,magnitude", "train.method=lors,spp", "prune.sparsity=2:4,0.5"])
    assert built.start is None
    assert built.runs[2].directory.name == "prune.method=wanda,train.method=spp,sparsity=2-4"
    for run in built.runs:
        assert run.stages == ["prune", "train"]
        assert run.train.input is None


def test_seeds_share_the_pruned_model_of_the_files_seed(config: Path) -> None:
    built = grid.build(config, ["seed=1,2"])
    assert [(run.config.seed, run.stages) for run in built.runs] == [(1, ["train"]), (2, ["train"])]
    assert built.start
    assert built.start.config.seed == 0


def test_names_are_safe_and_tell_values_apart(config: Path) -> None:
    built = grid.build(config, ["train.target_modules=[q_proj],[up_proj],null", "train.dataset.path=a/b,a-b"])
    names = [run.directory.name for run in built.runs]
    assert len(set(names)) == 6
    assert names[5] == "target_modules=null,path=a-b"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=,-") for name in names)
    assert grid.build(config, ["train.rank=1,2"]).runs[0].directory.name == "rank=1"  # which is not true


def test_every_mistake_of_a_grid_is_reported_at_once(config: Path, write_config: WriteConfig) -> None:
    wrong = problems(config, "train.rank=1,,2", "train.alpha=1,1", "merge.dense=true,false", "output_dir=a,b")
    assert set(wrong) == {"train.rank", "train.alpha", "merge.dense", "output_dir"}
    assert "does not change training" in wrong["merge.dense"]
    assert set(problems(config, "train.rank=-1,4", "train.method=lors,los")) == {"train.rank", "train.method"}
    assert "1e-4,3e-4" in problems(config, "train.rank=4")["key=v1,v2"]
    assert (
        "rank=4,learning_rate=0.01" in problems(config, "train.rank=4,8", "train.learning_rate=1e-2,0.01")["key=v1,v2"]
    )
    assert set(problems(config, "train.rank=1,2", "train.rank=4")) == {"train.rank"}
    assert set(problems(config, "train.eval_dataset.limit=1,2")) == {"train.eval_dataset"}
    assert set(problems(config, "prune.sparsity=0.5,0.6", "train.input=some")) == {"prune.sparsity"}
    neither = problems(write_config(eval=...), RATES)
    assert "train.eval_dataset, or eval.perplexity" in neither["train.eval_dataset"]

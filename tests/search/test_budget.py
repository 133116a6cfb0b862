from lors_cli.search.budget import steps_in_time
from lors_cli.search.sweep_file import Budget

TIMES = {"a": {"step": 2.0, "before": 10.0}, "b": {"step": 4.0, "before": 2.0}, "slow": {"step": 3.0, "before": 99.0}}


def test_an_arm_has_the_time_of_another_one_each_start_counted() -> None:
    budget = Budget(steps=10, time_of="a")  # 30 s
    assert {arm: steps_in_time(budget, TIMES, arm) for arm in TIMES} == {"a": 10, "b": 7, "slow": 1}


def test_seconds_are_steps_of_each_arm() -> None:
    assert {arm: steps_in_time(Budget(seconds=50), TIMES, arm) for arm in TIMES} == {"a": 20, "b": 12, "slow": 1}

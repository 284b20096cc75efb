"""Tasks, strategies, bits and objectives in pairs, on tiny data; benchmarks/tasks_matrix.py runs every combination."""

import math

import pytest
from small_tasks import OBJECTIVES, TASKS, arguments, pairwise, typed_for, typed_of

from compresskd import artifact
from compresskd.config.faults import ConfigError

pytestmark = pytest.mark.slow


FAST = ("quant.core_start=nearest",)  # the search for a start takes most of the time


@pytest.fixture(scope="session")
def of_task(tmp_path_factory):
    return arguments(tmp_path_factory.mktemp("small_tasks"))


def check(record, directory):
    final = record.stage(record.final)
    assert record.status == "finished"
    assert all(math.isfinite(value) for value in final["metrics"].values())
    assert artifact.fingerprint(artifact.load(directory / "model" / "model.ckd")) == final["fingerprint"]


@pytest.mark.parametrize(("task", "strategy", "bits"), pairwise(TASKS))
def test_a_pair_of_task_and_stage_and_bits(run_strategy, of_task, task, strategy, bits):
    record, directory = run_strategy(*of_task[task], *typed_of(strategy), f"bits={bits}", *FAST)
    check(record, directory)
    assert record.task["name"] == task


# each objective with two tasks that follow each other, so that each task has four
PAIRS = [(name, TASKS[(2 * n + m) % len(TASKS)]) for n, name in enumerate(OBJECTIVES) for m in (0, 1)]


@pytest.mark.parametrize(("objective", "task"), PAIRS)
def test_an_objective_fits_a_task_or_is_refused(run_strategy, of_task, objective, task):
    typed = typed_for(objective, task)
    if typed is None:
        with pytest.raises(ConfigError, match="kd"):
            run_strategy(*of_task[task], "strategy=distill", f"kd={objective}")
    else:
        check(*run_strategy(*of_task[task], "strategy=distill", *typed))

"""Tasks, strategies, bits and objectives in pairs, on tiny data; benchmarks/tasks_matrix.py runs every combination."""

import math
import re

import pytest
from small_tasks import OBJECTIVES, TASKS, arguments, pairwise, typed_for, typed_of

from compresskd import artifact, tt
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


@pytest.mark.parametrize(
    "strategy",
    ["compress", "compress_then_distill", "distill_to_compressed", "multi_stage", "compress_blockwise"],
)
def test_tables_in_groups_of_rows(run_strategy, of_task, strategy):
    typed = (*typed_of(strategy), "compress.row_groups=3", "compress.whitening=input", "bits=4")
    record, directory = run_strategy(*of_task["text_classification"], *typed, *FAST)
    check(record, directory)
    model = artifact.load(directory / "model" / "model.ckd")
    tables = [m for m in model.modules() if isinstance(m, tt.GroupedEmbedding)]
    assert tables
    for table in tables:
        assert len(table.counts) == 3
        assert list(table.counts) == sorted(table.counts)


@pytest.mark.parametrize(
    ("task", "typed", "said"),
    [
        ("text_classification", ("compress.whitening=none",), "1 with whitening=none"),
        ("classification", (), "1: no layer is a table of tokens"),
    ],
)
def test_what_has_no_groups_of_rows_is_refused(run_strategy, of_task, task, typed, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        run_strategy(*of_task[task], "strategy=compress", "compress.row_groups=3", *typed)

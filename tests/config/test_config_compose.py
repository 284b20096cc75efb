"""Jobs composed ahead of Hydra: what fits, what does not, and that nobody is told of the same thing twice."""

import pytest

from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError, Fault, of_jobs
from compresskd.config.schema import register
from compresskd.options import nearest

SMALL = ["data=synthetic", "data.num_train=64", "data.num_test=16"]


@pytest.fixture(autouse=True)
def _registered():
    register()


def test_faulty_overrides_are_left_out_and_the_rest_is_composed():
    (job,) = compose_jobs(["rank=7", "rnak=3", "student=mpl", "kd.temperature=2", "+epochs=3"]).jobs
    assert [fault.key for fault in job.faults] == ["student", "rnak", "+epochs"]
    assert job.config.rank == 7
    assert job.config.kd.temperature == 2
    assert job.config.epochs == 30
    assert "hydra" not in job.config


def test_jobs_of_a_sweep():
    plan = compose_jobs(["rank=4,8", "seed=range(0,3)", "kd.alpha=0.5"], multirun=True)
    assert [job.name for job in plan.jobs[:2]] == ["rank=4,seed=0", "rank=4,seed=1"]
    assert [(job.config.rank, job.config.seed) for job in plan.jobs] == [
        (r, s) for r in (4, 8) for s in range(3)
    ]
    assert plan.jobs[0].overrides == ["rank=4", "seed=0", "kd.alpha=0.5"]


def test_jobs_do_not_share_what_can_be_changed():
    first, second = compose_jobs(["rank=4,8"], multirun=True).jobs
    first.config.kd.alpha = 0.1
    assert second.config.kd.alpha == 0.7


def test_data_of_jobs_is_loaded_once_and_faults_name_the_job():
    plan = compose_jobs([*SMALL, "rank=4,8"], multirun=True)
    one, other = build_jobs(plan.jobs)
    assert one.data is other.data
    with pytest.raises(ConfigError) as raised:
        build_jobs(compose_jobs([*SMALL, "rank=4,0"], multirun=True).jobs)
    (fault,) = raised.value.faults
    assert (fault.key, fault.job) == ("rank", "rank=0")


def test_faults_of_all_jobs_are_told_without_a_job():
    everywhere, somewhere = Fault("a", "wrong"), Fault("b", "wrong")
    told = of_jobs([[everywhere], [everywhere, somewhere], [everywhere, somewhere]], ["x=1", "x=2", "x=3"])
    assert [str(fault) for fault in told] == ["a: wrong", "b: wrong (job x=2 and 1 more)"]


def test_nearest():
    assert nearest("resnet57", ["mlp", "resnet56"]) == "; did you mean resnet56?"
    assert nearest("Resnet56", ["mlp", "resnet56"]) == "; did you mean resnet56?"
    assert nearest("zzz", ["mlp", "lenet5"]) == "; expected mlp, lenet5"
    assert nearest("zzz", [f"name{i}" for i in range(99)]) == ""


@pytest.mark.parametrize(
    "typed", ["tracker=[0.9]", "kd=[1]", "tracker=[null]", "tracker=[[a]]", "tracker=[{a: 1}]"]
)
def test_a_choice_among_files_that_is_no_name_is_refused(typed):
    (job,) = compose_jobs([typed]).jobs
    key, _, value = typed.partition("=")
    assert [str(fault) for fault in job.faults] == [
        f"{key}: got {value}, expected a name, or a list of names"
    ]

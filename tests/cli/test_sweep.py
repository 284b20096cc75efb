"""Sweeps: named by what varies, compared, gone on with, refused where they would not fit."""

import json
import os
import threading

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from refusals import fault, refused
from small_sweeps import SMALL, failing, records, sweep_folder

from compresskd.cli import sweep
from compresskd.cli.sweep import (
    failures,
    job_key,
    naming_overrides,
    run_once,
    task_lines,
    varying_keys,
    wait_for_others,
)
from compresskd.config.compose import compose_jobs
from compresskd.run import RunDirectoryError, describe_owner, open_run

# Names


def test_a_sweep_is_named_by_its_keys_and_a_hash_of_what_is_constant():
    jobs = [["rank=4", "seed=0", "kd.alpha=0.5"], ["rank=8", "seed=0", "kd.alpha=0.5"]]
    first, second, _ = naming_overrides(jobs, [], "/out")
    assert first.startswith("hydra.sweep.dir='/out/sweeps/rank_")
    assert second == "hydra.job.config.override_dirname.exclude_keys=['kd.alpha','seed']"

    def folder(*jobs, outputs="/out"):
        return naming_overrides(jobs, [], outputs)[0]

    extended = [["rank=16", "seed=0", "kd.alpha=0.5"], *jobs]
    assert folder(*extended) == first
    assert folder(*[job[::-1] for job in jobs]) == first  # the order of words says nothing
    assert folder(*[[*job, "hydra/launcher=joblib", "outputs_dir=/out"] for job in jobs]) == first
    assert folder(*[[*job, "epochs=3"] for job in jobs]) != first
    assert folder(*[["rank=4", "kd.alpha=0.5", f"seed={seed}"] for seed in (0, 1)]) != first


def test_keys_of_the_same_last_word_do_not_share_a_folder():
    def folder(key):
        return naming_overrides([[f"{key}=1"], [f"{key}=2"]], [], "/out")[0]

    assert folder("optimizer.lr") != folder("teacher_fit.optimizer.lr")


def test_what_the_user_named_is_left_alone():
    jobs = [["rank=4"], ["rank=8"]]
    assert naming_overrides(jobs, ["dir", "subdir"], "/out") == []
    assert varying_keys([["+a.b=1", "c=1"], ["+a.b=2", "c=1"]]) == ["a.b"]


def test_a_single_job_has_a_folder_of_its_own_in_that_of_the_sweep():
    assert "hydra.sweep.subdir='single'" in naming_overrides([["rank=4", "seed=0"]], ["dir"], "/out")


def test_a_name_that_no_folder_can_have_is_refused():
    jobs = [[f"compress.include=[{'x' * 300}{i}]"] for i in range(2)]
    with pytest.raises(RunDirectoryError, match=r"write hydra\.sweep\.subdir='\$\{hydra\.job\.num\}'"):
        naming_overrides(jobs, [], "/out")
    assert len(naming_overrides(jobs, ["subdir"], "/out")) == 1


def once(*jobs, identity):
    """What `run_once` finds of jobs, each told by a function of its values: (folder, overrides, members)."""

    def of(lines):
        return str(identity({key: value for key, _, value in (line.partition("=") for line in lines)}))

    found = run_once(jobs, [of(job) for job in jobs], lambda lines, known: (lines, known))
    return [(each.folder, each.job[0], each.names) for each in found]


def test_a_key_that_does_not_concern_a_job_is_none_of_its_name():
    jobs = [
        [f"strategy={name}", f"rank={rank}", "seed=0"] for name in ("train", "compress") for rank in (4, 8)
    ]

    def rank_counts_unless_trained(values):
        return values["strategy"], values["strategy"] == "train" or values["rank"]

    (train,) = once(*jobs, identity=rank_counts_unless_trained)
    assert train == (
        "strategy=train", ["strategy=train", "seed=0"], ("rank=4,strategy=train", "rank=8,strategy=train"),
    )  # fmt: skip
    assert once(*jobs, identity=lambda values: sorted(values.items())) == []
    assert [folder for folder, *_ in once(*jobs[:2], identity=lambda _: 0)] == ["single"]


def test_a_key_may_concern_a_job_for_some_values_of_another():
    jobs = [[f"bits={bits}", f"grid={grid}"] for bits in ("null", 4) for grid in ("a", "b")]
    found = once(*jobs, identity=lambda values: values["bits"] == "null" or values["grid"])
    assert [folder for folder, *_ in found] == ["bits=null"]
    one, other, third = ["a=1", "b=1"], ["a=2", "b=1"], ["a=1", "b=2"]
    assert once(one, other, third, identity=lambda values: values["a"] == values["b"] == "1") == []


def test_what_a_sweeper_adds_makes_another_job():
    assert job_key(["rank=2", "hydra/launcher=joblib", "rank=3"]) == job_key(["rank=3"])
    assert job_key(["rank=3", "optimizer.lr=0.01"]) != job_key(["rank=3"])
    typed = ["a=true", "b=1e-2", "c=[1, 2]", "~d", "+e={f: 1}"]
    assert job_key(typed) == job_key(["a=True", "b=0.01", "c=[1,2]", "~d", "+e={f:1}"])


def test_jobs_are_those_of_hydra_s_own_sweeper_in_its_order():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    typed = ["rank=2", "strategy=distill,compress", "optimizer.lr=1e-3,0.010", "kd.standardize=true,false"]
    typed += ["data.name='a b',c", "rank=4", "teacher.hidden=[8],[8, 4]", "~train.mixup", "bits=choice(8,4)"]
    (expected,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    plan = compose_jobs(typed, multirun=True)
    assert plan.basic
    assert [task_lines(job) for job in plan.lines] == expected


def test_what_would_be_another_run_without_the_key_is_not_run_once():
    jobs = [["rank=4"], ["rank=8"]]
    assert run_once(jobs, ["same", "same"], lambda lines, known: None) == []


def test_failures_of_another_sweep_in_the_folder_are_none_of_ours(tmp_path):
    def write(name, **values):
        (tmp_path / name).mkdir()
        record = {"strategy": "s", "config": {}, "seed": 0, **values}
        (tmp_path / name / "record.json").write_text(json.dumps(record))

    error = {"type": "ValueError", "message": "wrong", "traceback": ""}
    write("lr=1", overrides=["lr=1", "seed=0"], status="finished")
    write("lr=2", overrides=["lr=2", "seed=0"], status="failed", error=error)
    write("lr=3", overrides=["lr=3", "seed=0"], status="running")
    write("lr=4", overrides=["lr=4", "seed=0"], status="failed", error=error)
    found = failures(tmp_path, [[f"lr={i}", "seed=0"] for i in (1, 2, 3)])
    assert found == {
        str(tmp_path / "lr=2"): "ValueError: wrong",
        str(tmp_path / "lr=3"): "was left unfinished; the same command resumes it",
    }


# In this process


def test_a_folder_that_vanishes_while_the_sweep_is_looked_through_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "job" / "checkpoints" / ".stage.tmp").mkdir(parents=True)
    (tmp_path / "job" / "record.json").write_text("no record")
    scandir = os.scandir

    def gone(path):  # another process renames its temporary folder
        if str(path).endswith(".stage.tmp"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert list(failures(tmp_path, [["seed=0"]])) == [str(tmp_path / "job")]
    wait_for_others(tmp_path, print)


@pytest.mark.slow
def test_a_sweep_is_compared_and_goes_on_with_more_values(run_cli, work):
    outcome = run_cli("-m", *SMALL, "kd.alpha=0.2,0.4")
    assert outcome.status == 0, outcome.err
    folder = sweep_folder(work)
    assert folder.name.startswith("alpha_")
    assert sorted(p.name for p in folder.iterdir()) == [
        "compare.csv", "compare.html", "compare.md", "kd.alpha=0.2", "kd.alpha=0.4", "multirun.yaml",
    ]  # fmt: skip
    assert "2 records (2 finished) in 2 groups" in outcome.out
    assert outcome.out.rstrip().endswith(f"the sweep is in {folder}")
    assert len((folder / "compare.csv").read_text().splitlines()) == 3
    before = {name: (folder / name / "record.json").read_bytes() for name in records(folder)}

    outcome = run_cli("-m", *SMALL, "kd.alpha=0.4,0.2,0.6")
    assert outcome.status == 0, outcome.err
    assert sweep_folder(work) == folder
    assert outcome.out.count("skipped: ") == 2
    assert f"skipped: {folder / 'kd.alpha=0.2'} is finished" in outcome.out
    assert "3 records (3 finished)" in outcome.out
    assert all((folder / name / "record.json").read_bytes() == content for name, content in before.items())
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert records(folder)["kd.alpha=0.6"]["teacher"]["source"] == "reused"


@pytest.mark.slow
def test_a_job_that_the_swept_key_does_not_concern_is_run_once(run_cli, work):
    sweep = ("-m", *SMALL, "compress.num_calibration=16", "strategy=train,compress")
    outcome = run_cli(*sweep, "rank=2,3")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("writing to ") == 3
    assert (
        "2 jobs are 1, run once: what varies among them does not concern them (strategy=train)" in outcome.out
    )
    assert "3 records (3 finished) in 3 groups" in outcome.out
    folder = sweep_folder(work)
    found = records(folder)
    assert set(found) == {"strategy=train", "rank=2,strategy=compress", "rank=3,strategy=compress"}
    assert "rank=2" not in found["strategy=train"]["overrides"]
    assert set(folder.iterdir()) >= {folder / name for name in found}
    assert not (folder / "rank=3,strategy=train").exists()

    again = run_cli(*sweep, "rank=5,3,2")  # in another order, with more values: the same record still
    assert again.status == 0, again.err
    assert again.out.count("writing to ") == 1
    assert f"skipped: {folder / 'strategy=train'} is finished" in again.out
    assert "4 records (4 finished) in 4 groups" in again.out


@pytest.mark.slow
def test_a_sweep_of_one_run_is_shown_as_one(run_cli, work):
    outcome = run_cli("-m", *SMALL, "strategy=train", "rank=2,3", "kd.alpha=0.1,0.2")
    assert outcome.status == 0, outcome.err
    assert "4 jobs are 1, run once" in outcome.out
    assert "1 record (1 finished) in 1 group" in outcome.out
    assert list(records(sweep_folder(work))) == ["single"]
    assert run_cli("resume", str(sweep_folder(work) / "single")).status == 2  # finished

    named = run_cli(
        "-m", *SMALL, "strategy=train", "rank=2,3", "hydra.sweep.subdir='r${rank}'", "outputs_dir=mine"
    )
    assert named.status == 0, named.err
    assert list(records(sweep_folder(work, "mine"))) == ["r2"]
    assert not (sweep_folder(work, "mine") / "r3").exists()


@pytest.mark.slow
def test_a_failed_job_that_stands_for_several_is_told_once_and_tried_again_by_the_same_command(
    run_cli, work, monkeypatch
):
    for trial in ("factory_faults", "try_training"):  # which would foresee it
        monkeypatch.setattr(f"compresskd.config.parts.{trial}", lambda *_: [])
    command = ("-m", *SMALL, "strategy=train", "rank=2,3", "optimizer.lr=1e30")
    for _ in range(2):
        outcome = run_cli(*command)
        assert outcome.status == 1
        single = sweep_folder(work) / "single"
        assert outcome.err.count(f"compresskd: {single}: NonFiniteLoss") == 1
        assert records(sweep_folder(work))["single"]["status"] == "failed"


@pytest.mark.slow
def test_a_folder_from_a_configuration_of_the_user_s_own(run_cli, work):
    (work / "my_conf" / "experiment").mkdir(parents=True)
    (work / "my_conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweep: {dir: 'swept/s_${seed}_${now:%S}'}\n"
        "  sweeper: {params: {kd.alpha: '0.2,0.4'}}\n"
    )
    outcome = run_cli("--config-dir", "my_conf", *SMALL, "experiment=mine")
    assert outcome.status == 0, outcome.err
    (folder,) = (work / "swept").iterdir()
    assert set(records(folder)) == {"kd.alpha=0.2", "kd.alpha=0.4"}
    assert (folder / "compare.csv").exists()
    assert f"the sweep is in swept/{folder.name}" in outcome.out
    assert not (work / "outputs" / "sweeps").exists()


def test_a_job_stays_where_the_sweep_was_begun(run_cli, work):
    outcome = run_cli("-m", *SMALL, "seed=0,1", "hydra.job.chdir=true")
    assert (outcome.status, outcome.left) == (2, [])
    assert "hydra.job.chdir" in outcome.err
    (work / "my_conf").mkdir()
    (work / "my_conf" / "moving.yaml").write_text("defaults: [config, _self_]\nhydra: {job: {chdir: true}}\n")
    outcome = run_cli("--config-dir=my_conf", "--config-name=moving", *SMALL)
    assert outcome.status == 2
    assert "hydra.job.chdir" in outcome.err


@pytest.mark.slow
def test_glob_chooses_files_of_a_group_and_no_numbers(run_cli, work):
    outcome = run_cli("-m", *SMALL[:-1], "rank=glob(*)")
    assert (outcome.status, outcome.left) == (2, [])
    assert "rank: " in outcome.err
    assert "glob chooses among the files of a group" in outcome.err
    outcome = run_cli("-m", *SMALL[:-1], "scheduler=glob(co*)")
    assert outcome.status == 0, outcome.err
    assert set(records(sweep_folder(work))) == {"scheduler=constant", "scheduler=cosine"}


@pytest.mark.slow
def test_folders_that_the_user_names(run_cli, work):
    outcome = run_cli(
        "-m", *SMALL, "seed=0,1", "hydra.sweep.dir='${outputs_dir}/mine'", "hydra.sweep.subdir='job_${seed}'"
    )
    assert outcome.status == 0, outcome.err
    assert set(records(work / "outputs" / "mine")) == {"job_0", "job_1"}
    assert (work / "outputs" / "mine" / "compare.csv").exists()
    assert not (work / "outputs" / "sweeps").exists()


@pytest.mark.slow
def test_a_finished_job_of_another_configuration_is_not_taken_for_this_one(run_cli, work):
    named = ("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=mine")
    assert run_cli(*named).status == 0
    before = (work / "mine" / "seed=0" / "record.json").read_bytes()
    outcome = run_cli(*named, "kd.temperature=2")
    assert outcome.status == 1
    assert outcome.err.count("holds a finished run of another configuration (") == 2
    assert outcome.err.count("kd.temperature: 4.0, now 2") == 2
    assert "(of a sweep: hydra.sweep.dir=DIR), or remove that folder" in outcome.err
    assert (work / "mine" / "seed=0" / "record.json").read_bytes() == before


@pytest.mark.slow
def test_a_failed_job_stops_no_other_and_the_end_names_every_one(run_cli, work, monkeypatch):
    for trial in ("factory_faults", "try_training"):  # which would foresee it
        monkeypatch.setattr(f"compresskd.config.parts.{trial}", lambda *_: [])
    outcome = run_cli("-m", *SMALL, "optimizer.lr=0.01,1e30,0.02,1e31")
    assert outcome.status == 1
    folder = sweep_folder(work)
    found = records(folder)
    assert {name: record["status"] for name, record in found.items()} == {
        "optimizer.lr=0.01": "finished",
        "optimizer.lr=1e+30": "failed",
        "optimizer.lr=0.02": "finished",
        "optimizer.lr=1e+31": "failed",
    }
    error = found["optimizer.lr=1e+30"]["error"]
    assert error["type"] == "NonFiniteLoss"
    assert error["traceback"].startswith("Traceback (most recent call last):")
    for name in ("optimizer.lr=1e+30", "optimizer.lr=1e+31"):
        assert f"compresskd: {folder / name}: NonFiniteLoss: the loss is not finite" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert "4 records (2 finished, 2 failed)" in outcome.out

    again = run_cli(
        "-m", *SMALL, "optimizer.lr=0.01,0.02"
    )  # the failures of the sweep before are none of its own
    assert (again.status, again.err) == (0, "")


@pytest.mark.slow
def test_a_failure_of_the_model_itself_is_told_too(run_cli, work):
    outcome = run_cli("-m", *failing(work))
    assert outcome.status == 1
    assert "RuntimeError: the net failed (--verbose shows where)" in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(r["status"] for r in records(sweep_folder(work)).values()) == ["failed", "finished"]


@pytest.mark.slow
def test_a_job_in_use_is_skipped_waited_for_and_named(run_cli, work, monkeypatch):
    assert run_cli("-m", *SMALL, "seed=0,1").status == 0
    taken = sweep_folder(work) / "seed=2"
    begun, waited_for = threading.Event(), threading.Event()

    def describe(folder):
        owner = describe_owner(folder)
        waited_for.set()
        return owner

    monkeypatch.setattr(sweep, "describe_owner", describe)

    def hold():  # a lock belongs to the thread that took it
        held = open_run(taken)
        begun.set()
        waited_for.wait(60)
        held.close()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    who = describe_owner(taken)
    outcome = run_cli("-m", *SMALL, "seed=1,2")
    thread.join()
    assert f"skipped: {taken} is run by {who}" in outcome.out
    assert f"waiting for {who}, which runs {taken}" in outcome.out
    assert outcome.status == 0  # nothing was begun there, so that there is nothing to tell of


def test_slurm_composes(run_cli):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    outcome = run_cli("hydra/launcher=submitit_slurm", "hydra.launcher.partition=short", "--cfg", "hydra")
    assert outcome.status == 0, outcome.err
    assert "submitit_launcher.SlurmLauncher" in outcome.out
    assert "partition: short" in outcome.out


# Studies

TINY_STUDY = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=64", "data.num_test=32", "student.hidden=[16]", "teacher.hidden=[16]",
    "seed=0", "total_epochs=4", "compress.num_calibration=32",
)  # fmt: skip


def trained_epochs(record):
    """Epochs of all training stages, as the metrics of a run count them."""
    return sum(stage.get("epochs", 0) for stage in record["stages"])


@pytest.mark.slow
def test_the_whole_study_by_one_word_at_matched_budgets(run_cli, work):
    outcome = run_cli("experiment=compare_strategies", *TINY_STUDY, "rank=3")
    assert outcome.status == 0, outcome.err
    folder = sweep_folder(work)
    assert folder.name.startswith("strategy_")
    found = records(folder)
    assert len(found) == 11
    assert all(name == f"strategy={record['strategy']}" for name, record in found.items())
    epochs = {record["strategy"]: trained_epochs(record) for record in found.values()}
    assert epochs.pop("compress") == 0
    assert set(epochs.values()) == {4}
    for name in found:
        lines = (
            (folder / name / "metrics.jsonl").read_text().count("\n") if name != "strategy=compress" else 0
        )
        assert lines == trained_epochs(found[name])
    (teacher,) = records(work / "outputs" / "teachers").values()
    assert trained_epochs(teacher) == 4
    assert len({r["teacher"]["fingerprint"] for r in found.values() if r["teacher"]}) == 1
    dense, matched, low_rank = (
        found[f"strategy={s}"]["stages"][-1]["size"]["folder_bytes"]
        for s in ("train", "distill_matched", "train_to_compressed")
    )
    assert matched <= low_rank < dense
    assert "11 records (11 finished) in 11 groups" in outcome.out


@pytest.mark.slow
def test_a_ladder_against_one_jump_by_one_word(run_cli, work):
    outcome = run_cli("experiment=progressive_rank", *TINY_STUDY, "rank=2")
    assert outcome.status == 0, outcome.err
    found = records(sweep_folder(work))
    ladder, jump = found["strategy=multi_stage"], found["strategy=distill_then_compress"]
    assert [stage["name"] for stage in ladder["stages"]] == ["distill", "step_1_r8", "step_2_r4", "step_3_r2"]
    assert [stage.get("epochs", 0) for stage in ladder["stages"]] == [1, 1, 1, 1]
    assert [stage.get("epochs", 0) for stage in jump["stages"]] == [2, 0, 2]
    reached = [
        [s["layers"] for s in run["stages"] if s["layers"]][-1]["fc1"]["ranks"] for run in (ladder, jump)
    ]
    assert reached == [[2], [2]]


@pytest.mark.slow
def test_a_budget_that_one_job_cannot_share_is_refused_before_the_first(run_cli):
    outcome = run_cli("-m", *SMALL, "total_epochs=6", "strategy=distill,distill_then_compress,multi_stage")
    refused(outcome, fault("total_epochs", "6", "4 or 8", "(job strategy=multi_stage)"))


@pytest.mark.slow
def test_nothing_of_a_job_is_kept_to_the_end_of_a_sweep(run_cli, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher  # Hydra loads its plugins anew

    kept, launch = [], BasicLauncher.launch

    def watched(self, *arguments, **options):
        kept.extend(launch(self, *arguments, **options))
        return kept

    monkeypatch.setattr(BasicLauncher, "launch", watched)
    assert run_cli("-m", *SMALL, "seed=0,1").status == 0
    assert [(job.cfg, job.hydra_cfg) for job in kept] == [(None, None)] * 2
    assert all(job.return_value > 0 for job in kept)

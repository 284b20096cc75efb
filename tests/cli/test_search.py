"""`compresskd search` and `goal=` on the command line: what is refused, what is written, and how it goes on."""

import copy
import json
from pathlib import Path

import pytest
from refusals import fault, refused, told
from small_sweeps import SMALL, failing, records

from compresskd.run import RunDirectoryError
from compresskd.search.trials import read_search

BASE = [word for word in SMALL if not word.startswith(("rank=", "strategy=", "measure"))]
SPACE = ["rank=int(1,3)", "bits=choice(4,8)", "strategy=compress_then_distill"]
BOTH = ["--maximize", "accuracy", "--minimize", "bytes"]


def folder(work, kind="searches"):
    (found,) = (work / "outputs" / kind).iterdir()
    return found


def written(directory):
    return json.loads((directory / "search.json").read_text())


@pytest.mark.slow
def test_a_search_writes_trials_front_and_report_and_goes_on(run_cli, work):
    ended = run_cli("search", *BASE, *SPACE, *BOTH, "--trials", "3", "--then", "1")
    assert ended.status == 0, ended.err
    directory = folder(work)
    search = written(directory)
    assert [trial["state"] for trial in search["trials"]] == ["finished"] * 3
    found = records(directory)
    trials = [found[trial["folder"]] for trial in search["trials"]]
    assert len(trials) == 3
    assert all(not name.startswith("test_") for r in trials for s in r["stages"] for name in s["metrics"])
    assert all(not name.startswith("test_") for r in trials for name in r["teacher"]["metrics"])
    assert all(record["config"]["measure"]["validation_only"] for record in trials)
    (best,) = [record for name, record in found.items() if name == "seed=0"]
    assert best["search"]["num_trials"] == 3
    assert "test_accuracy" in best["stages"][-1]["metrics"]
    assert search["answer"]["chosen"] in search["answer"]["front"]
    report = (directory / "compare.html").read_text()
    assert "Pareto front" in report
    assert "best of 3" in report
    assert "Pareto front" in ended.out
    assert "the best of 3 trials" in ended.out
    yaml = directory / "front" / "experiment" / f"{search['answer']['chosen']}.yaml"
    assert yaml.exists()
    again = run_cli(f"--config-dir={directory / 'front'}", f"experiment={yaml.stem}", "--cfg", "job")
    assert again.status == 0, again.err
    assert f"rank: {search['trials'][int(yaml.stem[6:])]['point']['rank']}" in again.out

    more = run_cli("search", *BASE, *SPACE, *BOTH, "--trials", "4")  # the same, and one more
    assert more.status == 0, more.err
    assert [trial["folder"] for trial in written(directory)["trials"]][:3] == [
        t["folder"] for t in search["trials"]
    ]
    assert len(written(directory)["trials"]) == 4
    assert run_cli("resume", str(directory)).status == 0
    assert len(written(directory)["trials"]) == 4


@pytest.mark.slow
def test_a_killed_trial_is_taken_up_and_gives_what_an_undisturbed_search_gives(run_cli, work):
    words = ("search", *BASE, *SPACE, "--trials", "4", "--seed", "2")
    assert run_cli(*words).status == 0
    directory = folder(work)
    whole = written(directory)
    killed = copy.deepcopy({**whole, "trials": whole["trials"][:3], "answer": {}})
    killed["trials"][2] |= {"state": "running", "figures": {}}  # it had ended when the search was killed
    killed["trials"][1] |= {"state": "running", "figures": {}}
    lost = directory / killed["trials"][1]["folder"]
    record = json.loads((lost / "record.json").read_text())
    (lost / "record.json").write_text(json.dumps(record | {"status": "running"}))
    (directory / "search.json").write_text(json.dumps(killed))
    assert run_cli("resume", str(directory)).status == 0
    now = written(directory)["trials"]
    assert [t["point"] for t in now] == [t["point"] for t in whole["trials"]]
    assert [t["figures"] for t in now] == [t["figures"] for t in whole["trials"]]


@pytest.mark.slow
def test_points_that_are_one_run_are_run_once(run_cli, work):
    words = ["rank=int(1,2)", "strategy=choice(distill,compress)"]
    ended = run_cli("search", *BASE, *words, "--trials", "4")
    assert ended.status == 0, ended.err
    trials = written(folder(work))["trials"]
    assert sorted(trial["state"] for trial in trials) == ["finished"] * 3 + ["same"]
    assert len(records(folder(work))) == 3


@pytest.mark.slow
def test_failed_trials_do_not_end_a_search_and_none_that_ends_well_is_a_failure(run_cli, work):
    words = [word for word in failing(work) if not word.startswith(("+student.fails", "strategy", "rank"))]
    ended = run_cli(
        "search", *words, "strategy=distill", "+student.fails=choice(false,true)", "--trials", "2"
    )
    assert ended.status == 0, ended.err
    assert sorted(trial["state"] for trial in written(folder(work))["trials"]) == ["failed", "finished"]
    assert "the net failed" in ended.err
    none = run_cli(
        "search", *words, "strategy=distill", "+student.fails=true", "seed=choice(1,2)", "--trials", "2"
    )
    assert none.status == 1
    assert "no trial" in none.err


@pytest.mark.slow
def test_finished_runs_count_as_tried(run_cli, work):
    sweep = ("-m", *BASE, *SPACE[2:], "bits=4", "rank=1,2", "epochs=1")
    assert run_cli(*sweep).status == 0
    given = (work / "outputs" / "sweeps").as_posix()
    ended = run_cli("search", *BASE, *SPACE, "--warm-start", given, "--trials", "1")
    assert ended.status == 0, ended.err
    assert "2 of 2 runs give points" in ended.err
    trials = written(folder(work))["trials"]
    assert [trial["state"] for trial in trials] == ["given", "given", "finished"]
    other = run_cli("search", *BASE, *SPACE, "--warm-start", given, "--trials", "1", "--epochs", "2")
    assert "0 of 2 runs give points" in other.err
    assert "epochs" in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rank=int(8,8)"], fault("rank", "int(8,8)")),
        (["optimizer.lr=log(0,1)"], fault("optimizer.lr", "logarithm")),
        (["bits=choice(4)"], fault("bits", "choice(4)")),
        (["rank=int(0,4)"], fault("rank", "0")),
        (["bits=choice(2,5)", "rank=2"], fault("bits", "5")),
        (["rnak=int(1,4)"], fault("rnak", "rank")),
        (["rank=3"], fault("search", "varies")),
        (["rank=1,2", "bits=choice(2,4)"], fault("rank", "choice(1,2)")),
        (["rank=int(1,4)", "--maximize", "test_accuracy"], fault("--maximize", "validation")),
        (["rank=int(1,4)", "--minimize", "accuracy"], fault("--minimize", "--maximize accuracy")),
        (["rank=int(1,4)", "--maximize", "acuracy"], fault("--maximize", "accuracy")),
        (["rank=int(1,4)", "--where", "bytes"], fault("--where", "bytes")),
        (["rank=int(1,4)", "--minimize", "latency", "--workers", "2"], fault("--workers", "2")),
        (["rank=int(1,4)", "--epochs", "2", "total_epochs=4"], fault("--epochs", "total_epochs")),
        (["rank=int(1,4)", "strategy=train", "--where", "accuracy>=-1"], fault("--where", "teacher")),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(run_cli, words, said):
    refused(run_cli("search", *BASE, *words), said)


@pytest.mark.parametrize(
    "words", [["--trials", "0"], ["--minutes", "x"], ["--seed", "-1"], ["--workers", "1.5"]]
)
def test_flags_of_a_search_are_numbers(run_cli, words):
    assert run_cli("search", "rank=int(1,4)", *words).status == 2


def test_without_optuna_a_search_says_what_to_install(run_cli, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    refused(run_cli("search", *BASE, "rank=int(1,4)"), fault("search", "compresskd[search]"))


def test_a_folder_of_something_else_is_left_alone(run_cli, work):
    (work / "mine").mkdir()
    (work / "mine" / "note.txt").write_text("x")
    told(run_cli("search", *BASE, "rank=int(1,4)", "hydra.sweep.dir=mine"), "no search")
    with pytest.raises(RunDirectoryError, match="no search"):
        read_search(Path("mine"))


@pytest.mark.slow
def test_a_goal_is_answered_in_one_line(run_cli, work):
    ended = run_cli(
        "goal=accuracy>=-60", "minimize=bytes", *BASE, "strategy=compress_then_distill", "--trials", "6"
    )
    assert ended.status == 0, ended.err
    search = written(folder(work, "goals"))
    assert search["asked"]["kind"] == "goal"
    chosen = next(t for t in search["trials"] if f"trial_{t['number']}" == search["answer"]["chosen"])
    (best,) = [record for name, record in records(work).items() if name == "seed=0"]
    assert best["stages"][-1]["metrics"]["validation_accuracy"] == chosen["figures"]["accuracy"]
    assert "test accuracy" in ended.out
    assert run_cli("resume", str(folder(work, "goals"))).status == 0


@pytest.mark.slow
def test_a_goal_that_nothing_meets_shows_the_nearest(run_cli, work):
    ended = run_cli("goal=bytes<=10", *BASE, "strategy=compress_then_distill", "bits=4", "--trials", "2")
    assert ended.status == 3
    assert "nearest" in ended.err
    assert written(folder(work, "goals"))["answer"]["chosen"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["goal"], fault("goal", "nothing")),
        (["goal=accuracy"], fault("goal", "quotes")),
        (["goal=accuracy>=0.9"], fault("goal", "percent")),
        (["goal=bytes<=5000", "minimize=macs"], fault("goal", "metric")),
        (["goal=accuracy>=90", "maximize=macro_f1"], fault("goal", "size")),
        (["goal=accuracy>=90", "minimize=bytes", "minimize=macs"], fault("minimize", "one")),
        (["goal=accuracy>=90", "rank=int(1,4)"], fault("rank", "search")),
        (["goal=accuracy>=90", "rnak=3"], fault("rnak", "rank")),
        (["goal=test_accuracy>=90"], fault("goal", "validation")),
    ],
)
def test_what_is_no_goal_is_refused_before_anything_runs(run_cli, words, said):
    refused(run_cli(*words, *BASE), said)


@pytest.mark.slow
def test_several_workers_share_a_search(run_program, work):
    ended = run_program("search", *BASE, *SPACE, *BOTH, "--trials", "3", "--workers", "2")
    assert ended.status == 0, ended.err
    trials = written(folder(work))["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert records(folder(work)).keys() == {trial["folder"] for trial in trials}
    assert not list(folder(work).glob("run.*"))  # nobody holds it any more

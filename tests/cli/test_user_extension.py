"""A user's own loss, model, data set and strategy, from a folder outside the package, without an edit to it."""

import json
import shutil
from pathlib import Path

import pytest

import compresskd
from compresskd.artifact import load

PROJECT = Path(__file__).parent / "my_project"
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TYPED = [
    "--config-dir", "my_conf", "data=wine", "teacher=shortcut", "teacher.width=64", "student=shortcut", "kd=cosine",
    "strategy=learn_then_compress", "rank=4",
]  # fmt: skip


@pytest.fixture
def project(work):
    """The folder as docs/extending.md shows it; it is where commands are run."""
    shutil.copytree(PROJECT, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return work


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.slow
def test_command_of_the_page(run_cli, project):
    outcome = run_cli(*TYPED)
    assert outcome.status == 0, outcome.err
    (folder,) = (project / "outputs").glob("*/*_learn_then_compress_r4")
    record = record_of(folder)
    assert record["data"]["name"] == "wine"
    assert record["data"]["num_test"] == 44
    assert [stage["name"] for stage in record["stages"]] == ["learn", "factorize", "distill"]
    assert record["stages"][-1]["metrics"]["test_accuracy"] > 0.9
    assert {"first", "inner"} <= set(record["stages"][1]["layers"])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["terms"]) == {"cross_entropy", "cosine"}
    (teacher,) = (project / "outputs" / "teachers").iterdir()
    assert teacher.name.startswith("shortcut_")


@pytest.mark.slow
def test_resume_of_a_run_with_own_parts_gives_the_same(run_cli, project):
    assert run_cli(*TYPED, "epochs=2", "measure.latency=false", "hydra.run.dir=run").status == 0
    run = project / "run"
    complete, lines = record_of(run), (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["stage"] == "learn"]
    stopped = {**complete, "status": "interrupted", "stages": complete["stages"][:2], "final": "factorize"}
    (run / "record.json").write_text(json.dumps(stopped))
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    assert run_cli("resume", "run").status == 0
    again = record_of(run)
    assert again["status"] == "finished"
    assert again["stages"][-1]["metrics"] == complete["stages"][-1]["metrics"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.slow
def test_resume_where_the_parts_are_not_says_so(run_cli, project, tmp_path, monkeypatch):
    assert run_cli(*TYPED, "epochs=0", "measure.latency=false", "hydra.run.dir=run").status == 0
    run = project / "run"
    (run / "record.json").write_text(json.dumps({**record_of(run), "status": "interrupted"}))
    for name in ("my_loss.py", "my_model.py", "my_data.py"):
        (project / name).rename(tmp_path / name)
    for name in ("my_loss", "my_model", "my_data"):
        monkeypatch.delitem(__import__("sys").modules, name)
    outcome = run_cli("resume", "run")
    assert outcome.status == 2
    for key, name in (("data", "my_data"), ("student", "my_model"), ("kd.objective.terms.cosine", "my_loss")):
        assert f"{key}._target_: {name}." in outcome.err
        assert f"no module named '{name}' on the Python path" in outcome.err


@pytest.mark.slow
def test_factorized_model_of_ones_own_reloads_without_configuration(run_cli, project):
    typed = [
        "--config-dir=my_conf",
        "data=wine",
        "teacher=shortcut",
        "strategy=compress",
        "rank=3",
        "epochs=2",
    ]
    assert run_cli(*typed, "measure.latency=false", "hydra.run.dir=run").status == 0
    stage = record_of(project / "run")["stages"][0]
    assert all(rank <= 3 for layer in stage["layers"].values() for rank in layer["ranks"])
    model = load(project / "run" / stage["checkpoint"], trust=["my_model"])
    assert type(model).__name__ == "Shortcut"
    assert sum(p.numel() for p in model.parameters()) == stage["size"]["num_parameters"]
    with pytest.raises(ValueError, match="my_model"):
        load(project / "run" / stage["checkpoint"])


@pytest.mark.slow
def test_a_run_is_scored_on_data_of_ones_own(run_cli, project):
    assert run_cli(*TYPED, "epochs=1", "measure.latency=false", "hydra.run.dir=run").status == 0
    words = ("evaluate", "run", "data=wine", "data.test_fraction=0.5")
    assert "data: got wine" in run_cli(*words).err  # which is described in my_conf alone
    outcome = run_cli(*words, "--config-dir", "my_conf")
    assert outcome.status == 0, outcome.err
    assert "of 89 samples (other data than the run's" in outcome.out
    assert run_cli("evaluate", "--config-dir=my_conf", "run", "learn", "data=wine").status == 0


@pytest.mark.slow
def test_own_names_are_among_those_that_are_suggested(run_cli, project):
    outcome = run_cli(
        "--config-dir", "my_conf", "data=wine", "student=shortcutt", "kd=cosin", "strategy=learn_compress"
    )
    assert outcome.status == 2
    for message in (
        "student: got shortcutt; did you mean shortcut?",
        "kd: got cosin; did you mean cosine?",
        "strategy: got learn_compress; did you mean learn_then_compress?",
    ):
        assert message in outcome.err
    assert outcome.left == []


def test_faults_of_own_parts_are_told(run_cli, project):
    outcome = run_cli(*TYPED, "student.witdh=3", "+kd.objective.terms.cosine.power=2", "data.test_fraction=2")
    assert outcome.status == 2
    assert "student.witdh: unknown option; did you mean student.width?" in outcome.err
    assert "kd.objective.terms.cosine.power: unknown option of my_loss.Cosine" in outcome.err
    assert "data.test_fraction: got 2, expected" in outcome.err


@pytest.mark.slow
def test_folder_can_be_given_as_a_search_path(run_cli, project):
    typed = [
        "hydra.searchpath=[file://my_conf]",
        "data=wine",
        "student=shortcut",
        "strategy=train",
        "epochs=1",
    ]
    outcome = run_cli(*typed, "measure.latency=false", "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    assert record_of(project / "run")["status"] == "finished"


def test_nothing_of_the_project_is_in_the_package():
    package = Path(compresskd.__file__).parent
    assert not list(package.rglob("my_*"))


@pytest.mark.slow
def test_own_stage_is_run_and_its_details_are_recorded(run_cli, project):
    typed = ["--config-dir=my_conf", "data=wine", "strategy=prune_then_compress", "rank=4", "epochs=2"]
    assert run_cli(*typed, "measure.latency=false", "hydra.run.dir=run").status == 0
    run = project / "run"
    stage = record_of(run)["stages"][1]
    assert (stage["name"], stage["fraction_of_zeros"]) == ("prune", 0.3)
    weight = load(run / stage["checkpoint"]).fc1.weight
    assert (weight == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    refused = run_cli(*typed, "strategy.stages.prune.fraction=1")
    assert refused.status == 2
    assert "strategy.stages.prune.fraction: got 1" in refused.err


def test_page_shows_these_files():
    text = PAGE.read_text(encoding="utf-8")
    shown = [path for path in PROJECT.rglob("*.*") if path.suffix in (".py", ".yaml")]
    assert len(shown) >= 9
    for path in shown:
        assert path.read_text(encoding="utf-8").strip() in text, path
        assert str(path.relative_to(PROJECT)) in text, path
    assert " ".join(TYPED) in text

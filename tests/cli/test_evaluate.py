"""evaluate: a finished run's model scored again, and in words whether the recorded figure is reproduced."""

import json
import shutil
from pathlib import Path

import pytest

SMALL = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=128", "data.num_test=64", "data.separation=0.8", "student.hidden=[16]",
    "epochs=8", "optimizer.lr=0.01", "train.evaluation_batch_size=16",
)  # fmt: skip
RUN = (*SMALL, "teacher.hidden=[16]", "rank=3", "strategy=distill_then_compress", "teacher_fit.epochs=1")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the run is kept, once one test has made it."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def finished(run_cli, work, kept):
    """The folder of a finished run of three stages."""
    if kept.exists():
        shutil.copytree(kept, work / "run")
    else:
        outcome = run_cli(*RUN, "hydra.run.dir=run")
        assert outcome.status == 0, outcome.err
        shutil.copytree(work / "run", kept)
        shutil.rmtree(work / "outputs")
    return work / "run"


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def change(folder, edit):
    record = record_of(folder)
    edit(record)
    (folder / "record.json").write_text(json.dumps(record))


def accuracy(folder, stage):
    (entry,) = (s for s in record_of(folder)["stages"] if s["name"] == stage)
    return 100 * entry["metrics"]["test_accuracy"]


def says(outcome, status, text):
    assert outcome.status == status, outcome.err
    assert (outcome.out if status < 2 else outcome.err) == text + "\n"
    assert outcome.left == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distill", "factorize", "finetune"])
def test_every_stage_is_reproduced_and_nothing_is_written(run_cli, finished, stage):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    figure = f"{accuracy(finished, stage):.2f}%"
    named = () if stage == "finetune" else (stage,)  # the last one is the result
    outcome = run_cli("evaluate", "run", *named)
    says(outcome, 0, f"{stage}: test accuracy {figure} of 64 samples; recorded {figure}: reproduced")
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_figure_that_is_not_the_model_s_is_not_reproduced(run_cli, finished):
    true = accuracy(finished, "finetune")

    def set_to(value):
        change(finished, lambda record: record["stages"][-1]["metrics"].update(test_accuracy=value / 100))
        return run_cli("evaluate", "run")

    for altered in (true + 100 * 2 / 64, true - 100 * 2 / 64):
        text = f"finetune: test accuracy {true:.2f}% of 64 samples; recorded {altered:.2f}%: NOT reproduced"
        says(set_to(altered), 1, text)
    assert set_to(true + 100 / 64).status == 0  # one sample at the border


def other_model(run_cli):
    """The folder of another run's model for the same data."""
    outcome = run_cli(*SMALL, "strategy=train", "epochs=0", "student.hidden=[4]", "hydra.run.dir=other")
    assert outcome.status == 0, outcome.err
    return Path("other")


@pytest.mark.slow
@pytest.mark.parametrize("names", [["model.ckd"], ["model.safetensors", "structure.json"], None], ids=str)
def test_a_model_that_has_been_exchanged_is_not_reproduced(run_cli, finished, names):
    """Whole and loadable, but not the one that was recorded; also where the record's fingerprints go along."""
    model = finished / "model"
    other = other_model(run_cli) / "model"
    names = names or sorted(path.name for path in model.iterdir())
    for name in names:
        shutil.copy(other / name, model / name)
    outcome = run_cli("evaluate", "run")
    assert outcome.status == 1
    assert f"run/model/{names[0]} is not the file that was recorded" in outcome.err
    assert outcome.err.endswith(": NOT reproduced\n")
    change(finished, lambda record: record["model"].pop("files"))
    outcome = run_cli("evaluate", "run")
    assert outcome.status == 1
    assert "holds another model than " in outcome.err
    change(finished, lambda record: record["stages"][-1].pop("fingerprint"))
    if len(names) == 3:  # then only the score is left to tell
        assert ": NOT reproduced" in run_cli("evaluate", "run").out
    else:
        assert "model.ckd holds another model than run/model" in run_cli("evaluate", "run").err
    assert run_cli("evaluate", "run", "finetune").status == 0  # the checkpoint is as it was


def test_a_model_that_is_gone_is_not_reproduced(run_cli, finished):
    for name in ("model.ckd", "structure.json", None):
        path = finished / "model" / name if name else finished / "model"
        path.rename(finished / "kept")
        outcome = run_cli("evaluate", "run")
        assert outcome.status == 1
        assert f"run/model/{name or 'model.ckd'} is missing: NOT reproduced" in outcome.err
        (finished / "kept").rename(path)
    (finished / "model" / "more.bin").touch()
    assert "run/model/more.bin is not in the record: NOT reproduced" in run_cli("evaluate", "run").err


def test_a_record_of_an_earlier_version_says_that_it_has_no_fingerprint(run_cli, finished):
    def strip(record):
        record["model"].pop("files")
        for stage in record["stages"]:
            del stage["files"], stage["fingerprint"]

    change(finished, strip)
    without = ": reproduced (no fingerprint in the record: it may be another model)\n"
    assert run_cli("evaluate", "run").out.endswith(without)
    assert run_cli("evaluate", "run", "distill").out.endswith(without)
    shutil.rmtree(finished / "model")  # which versions before it did not write: the checkpoint is scored
    change(finished, lambda record: record.update(model=None))
    assert run_cli("evaluate", "run").out.endswith(without)


def test_a_link_in_place_of_a_model_is_not_followed(run_cli, finished):
    (finished / "model").rename("elsewhere")
    (finished / "model").symlink_to(Path("elsewhere").absolute())
    outcome = run_cli("evaluate", "run")
    assert outcome.status == 1
    assert outcome.err.endswith(": NOT reproduced\n")


def test_other_data_has_nothing_to_reproduce(run_cli, finished):
    other = "(other data than the run's: nothing to reproduce)"
    outcome = run_cli("evaluate", "run", "data.data_seed=5")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("finetune: test accuracy ")
    assert outcome.out.endswith(f" of 64 samples {other}\n")
    named = run_cli("evaluate", "run", "distill", "data=synthetic", "data.num_test=40")
    assert named.out.startswith("distill: test accuracy ")
    assert named.out.endswith(f" of 40 samples {other}\n")
    # what does not touch the test split leaves something to reproduce
    assert run_cli("evaluate", "run", "data.augmentation_bank=null").out.endswith(": reproduced\n")


WRONG = {
    "other classes": (["data=digits"], "the model knows 4 classes, the data has 10; write another data="),
    "other shape": (
        ["data.input_shape=[1, 4, 4]"],
        "the model takes inputs of shape [1, 8, 8], the data has [1, 4, 4]; write another data=",
    ),
    "no such stage": (
        ["tune"],
        "run has no finished stage 'tune'; finished are: distill, factorize, finetune",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(run_cli, finished, arguments, text):
    says(run_cli("evaluate", "run", *arguments), 2, f"compresskd: {text}")


FAULTS = {
    "no such set": ("data=digitz", "data: got digitz; did you mean digits?"),
    "no such file": ("data.path=/no/such", "data.path: unknown option of compresskd.data.synthetic.synthetic"),
    "not about data": ("rank=3", "rank=3: is not about the data; evaluate takes data=NAME and data.KEY=VALUE only"),
    "augmentation": (
        "data/augmentation=crop",
        "data/augmentation=crop: is not about the data; evaluate takes data=NAME and data.KEY=VALUE only",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_override_is_named(run_cli, finished, argument, text):
    outcome = run_cli("evaluate", "run", argument)
    assert (outcome.status, outcome.out, outcome.left) == (2, "", [])
    assert f"\n  {text}" in outcome.err


def test_an_unknown_option_of_the_data_is_named(run_cli, finished):
    outcome = run_cli("evaluate", "run", "data.nokey=3")
    assert outcome.status == 2
    assert "data.nokey: unknown option of compresskd.data.synthetic.synthetic" in outcome.err


def test_an_unfinished_run_is_not_taken_for_a_finished_one(run_cli, finished):
    change(finished, lambda r: r.update(status="interrupted", stages=r["stages"][:1], final="distill"))
    says(
        run_cli("evaluate", "run"),
        2,
        "compresskd: run is not finished (it is interrupted); resume it by: compresskd resume run, "
        "or name a finished stage; finished are: distill",
    )
    assert run_cli("evaluate", "run", "distill").out.endswith(": reproduced\n")
    change(finished, lambda r: r.update(status="failed", stages=[], final=None))
    outcome = run_cli("evaluate", "run", "distill")
    says(outcome, 2, "compresskd: run has no finished stage 'distill'; finished are: none")


def _cut(model):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-8])
    return "model.safetensors is not the file that was recorded"


def _flip(model):
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (model / "model.safetensors").write_bytes(content)
    return "model.safetensors is not the file that was recorded"


def _no_weights(model):
    (model / "model.safetensors").unlink()
    return "model.safetensors is missing"


def _no_structure(model):
    (model / "structure.json").write_text("{")
    return "structure.json is not the file that was recorded"


@pytest.mark.parametrize("damage", [_cut, _flip, _no_weights, _no_structure], ids=lambda f: f.__name__[1:])
def test_a_damaged_model_is_named(run_cli, finished, damage):
    for folder, stage in (("checkpoints/distill", ["distill"]), ("model", [])):
        text = damage(finished / folder)
        outcome = run_cli("evaluate", "run", *stage)
        assert (outcome.status, outcome.out) == (1, "")
        assert text in outcome.err
        assert "Traceback" not in outcome.err
    assert run_cli("evaluate", "run", "factorize").status == 0  # the other stages are whole


def test_a_record_without_the_figure_is_named(run_cli, finished):
    change(finished, lambda record: record["stages"][-1]["metrics"].pop("test_accuracy"))
    says(
        run_cli("evaluate", "run"),
        2,
        "compresskd: run/record.json cannot be read: stages[2].metrics.test_accuracy: expected a finite number, "
        "got None",
    )


@pytest.mark.parametrize("arguments", [[], ["--wrong"], ["a", "b", "c"]], ids=len)
def test_wrong_arguments_show_the_usage(run_cli, arguments):
    outcome = run_cli("evaluate", *arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith(("usage: compresskd evaluate ", "compresskd: evaluate: got the stages b c"))


def test_help_and_no_run(run_cli):
    assert run_cli("evaluate", "--help").status == 0
    outcome = run_cli("evaluate", "nowhere")
    assert outcome.status == 2
    assert "nowhere is not a run directory: it has no record.json" in outcome.err

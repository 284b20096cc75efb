"""The verb: which model, where to, and what is refused in which words."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import compresskd
from compresskd import artifact
from compresskd.export import onnx, pt2
from compresskd.models.build import build

RUN = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=64", "data.num_test=40", "teacher.hidden=[16]", "student.hidden=[16]", "rank=2",
    "strategy=distill_then_compress", "epochs=1", "teacher_fit.epochs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the run is kept, once one test has made it."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def run(run_cli, work, kept):
    """The folder of a finished run with two factorized layers."""
    if not kept.exists():
        outcome = run_cli(*RUN, "hydra.run.dir=run")
        assert outcome.status == 0, outcome.err
        shutil.copytree(work / "run", kept)
        shutil.rmtree(work / "run")
        shutil.rmtree(work / "outputs")
    return shutil.copytree(kept, work / "run")


@pytest.fixture
def folder(work):
    """The folder of a model without a run."""
    options = {"hidden": [6], "num_classes": 3, "input_shape": [4]}
    artifact.save(build("compresskd.models.mlp.MLP", options, seed=0), work / "small")
    return work / "small"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name"), [("onnx", "model.onnx"), ("pt2", "model.pt2"), ("dense", "model-dense")]
)
def test_a_run_is_exported_beside_its_model_and_compared_on_its_own_test_data(run_cli, run, form, name):
    outcome = run_cli("export", "run", "--to", form, "--check-samples", "35")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"wrote run/export/{name} (")
    assert (
        "compared on 35 test samples of synthetic, in batches of 1 and 32: largest difference " in outcome.out
    )
    assert "equal predictions 100.00%" in outcome.out
    report = json.loads((run / "export" / f"{name}.export.json").read_text())
    assert report["form"] == form
    assert report["largest_difference"] < 1e-5
    assert report["equal_predictions"] == 1
    assert report["num_compared"] == 16 + 35
    model, x = artifact.load(run), torch.randn(7, 1, 8, 8)
    path = run / "export" / name
    exported = {"onnx": onnx.read, "pt2": pt2.read, "dense": compresskd.load}[form](path)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_model_without_a_run_is_compared_on_random_inputs_and_says_so(run_cli, folder):
    outcome = run_cli("export", "small", "--to", "pt2", "--check-samples", "5")
    assert outcome.status == 0, outcome.err
    assert "compared on 5 random inputs (the same each time; no data at hand)" in outcome.out
    assert outcome.left == ["small.pt2", "small.pt2.export.json"]


@pytest.mark.slow
def test_compact_files_and_checkpoints_are_exported_too(run_cli, run):
    (checkpoint,) = run.glob("checkpoints/finetune")
    assert run_cli("export", str(checkpoint), "--to", "pt2", "--out", "a.pt2").status == 0
    artifact.write_compact(artifact.read(run), run.parent / "m.ckd")
    assert run_cli("export", "m.ckd", "--to", "dense").left == [
        "m-dense", "m-dense.export.json", "m-dense/model.safetensors", "m-dense/structure.json",
    ]  # fmt: skip


def test_nothing_is_overwritten_unasked(run_cli, folder):
    command = ("export", "small", "--to", "pt2", "--check-samples", "3")
    assert run_cli(*command).status == 0
    before = (folder.parent / "small.pt2").read_bytes()
    outcome = run_cli(*command)
    assert outcome.status == 2
    assert outcome.err.endswith(
        "small.pt2 is there already; write another --out, or --overwrite to replace it\n"
    )
    assert (folder.parent / "small.pt2").read_bytes() == before
    assert run_cli(*command, "--overwrite").status == 0


def test_a_folder_of_something_else_is_never_replaced(run_cli, folder):
    (folder.parent / "precious").mkdir()
    (folder.parent / "precious" / "thesis.tex").write_text("x")
    outcome = run_cli("export", "small", "--to", "dense", "--out", "precious", "--overwrite")
    assert outcome.status == 2
    assert "precious was written by something else than an export, which is never replaced" in outcome.err
    outcome = run_cli("export", "small", "--to", "pt2", "--out", "precious", "--overwrite")
    assert (outcome.status, "precious is a folder, which this form" in outcome.err) == (2, True)
    assert (folder.parent / "precious" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["mine.pt2", "mine.pt2.export.json"])
def test_a_file_of_somebody_else_is_never_replaced(run_cli, folder, name):
    (folder.parent / name).write_text("[1, 2]")
    outcome = run_cli("export", "small", "--to", "pt2", "--out", "mine.pt2", "--overwrite")
    assert outcome.status == 2
    assert f"{name} was written by something else than an export" in outcome.err
    assert (folder.parent / name).read_text() == "[1, 2]"


def test_the_model_itself_is_never_replaced_by_its_export(run_cli, folder):
    before = (folder / "model.safetensors").read_bytes()
    outcome = run_cli("export", "small", "--to", "dense", "--out", "small", "--overwrite")
    assert (outcome.status, "something else than an export" in outcome.err) == (2, True)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_link_out_of_a_run_is_not_followed(run_cli, run):
    (run.parent / "elsewhere").mkdir()
    (run / "export").symlink_to(run.parent / "elsewhere")
    outcome = run_cli("export", "run", "--to", "pt2")
    assert (outcome.status, "run/export is a link out of the run directory" in outcome.err) == (2, True)
    assert not list((run.parent / "elsewhere").iterdir())


@pytest.mark.parametrize("form", ["dense", "pt2"])
def test_what_a_killed_export_left_is_removed_by_the_next(run_cli, folder, form):
    """Killed twice: while it wrote, and between the report and the model."""
    left, other = (folder.parent / f".{name}.0123abcd.compresskd-tmp" for name in ("out", "another"))
    if form == "dense":
        left.mkdir()
    (left / "model.safetensors" if form == "dense" else left).write_text("half")
    (folder.parent / ".out.export.json.0123abcd.compresskd-tmp").write_text("{")
    (folder.parent / "out.export.json").write_text(json.dumps({"form": form}))
    other.write_text("of another export, which may be at work")
    outcome = run_cli("export", "small", "--to", form, "--out", "out")
    assert outcome.status == 0, outcome.err
    assert [path.name for path in folder.parent.glob(".*.compresskd-tmp")] == [other.name]
    assert json.loads((folder.parent / "out.export.json").read_text())["num_compared"] == 16 + 256


KILLED = """
import os, signal, sys
from compresskd.export import dense
from compresskd.cli import main
write = dense.write
def dying(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
dense.write = dying
main(["export", "small", "--to", "dense", "--out", "d"])
"""


@pytest.mark.slow
def test_a_real_kill_leaves_nothing_for_long(run_cli, folder):
    died = subprocess.run([sys.executable, "-c", KILLED], cwd=folder.parent, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(folder.parent.glob(".d.*.compresskd-tmp"))) == 1
    assert run_cli("export", "small", "--to", "dense", "--out", "d").status == 0
    assert not list(folder.parent.glob(".*.compresskd-tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2", "dense"])
def test_a_model_that_answers_nan_is_no_export(run_cli, folder, form):
    model = artifact.load(folder)
    with torch.no_grad():
        for parameter in model.parameters():  # NaN itself is not stored; infinity less infinity is NaN
            parameter.copy_(torch.where(torch.rand(parameter.shape) < 0.5, 3e38, -3e38))
    shutil.rmtree(folder)
    artifact.save(model, folder)
    outcome = run_cli("export", "small", "--to", form)
    assert (outcome.status, outcome.out, outcome.left) == (1, "", [])
    assert "the model itself answers NaN or infinity" in outcome.err


def _cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])
    return "is damaged"


def _no_weights(folder):
    (folder / "model.safetensors").unlink()
    return "model.safetensors cannot be read"


def _foreign(folder):
    described = json.loads((folder / "structure.json").read_text())
    (folder / "structure.json").write_text(json.dumps({**described, "format": 99}))
    return "has format 99"


@pytest.mark.parametrize("damage", [_cut, _no_weights, _foreign], ids=lambda f: f.__name__[1:])
def test_a_damaged_model_is_refused(run_cli, folder, damage):
    text = damage(folder)
    outcome = run_cli("export", "small", "--to", "pt2")
    assert (outcome.status, outcome.out, outcome.left) == (2, "", [])
    assert text in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unfinished_run_has_no_model_yet(run_cli, run):
    shutil.rmtree(run / "model", ignore_errors=True)
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, "status": "interrupted"}))
    outcome = run_cli("export", "run", "--to", "pt2")
    assert outcome.status == 2
    assert "run is not finished (it is interrupted)" in outcome.err


WRONG = {
    "no such place": (["nowhere", "--to", "onnx"], "nowhere holds no model: expected a run directory, a folder"),
    "no model there": ([".", "--to", "onnx"], ". holds no model"),
    "unknown form": (["small", "--to", "tflite"], "invalid choice: 'tflite' (choose from"),
    "no form": (["small"], "the following arguments are required: --to"),
    "no samples": (["small", "--to", "pt2", "--check-samples", "0"], "expected a whole number from 1, got '0'"),
    "words": (["small", "--to", "pt2", "--check-samples", "all"], "expected a whole number from 1, got 'all'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused(run_cli, folder, arguments, text):
    outcome = run_cli("export", *arguments)
    assert (outcome.status, outcome.out, outcome.left) == (2, "", [])
    assert text in outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_package_is_named_with_the_extra(run_cli, folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    outcome = run_cli("export", "small", "--to", "onnx")
    assert (outcome.status, outcome.left) == (2, [])
    assert outcome.err == (
        "compresskd: --to onnx needs onnxruntime, which is not installed; write: pip install 'compresskd[export]'\n"
    )
    assert run_cli("export", "small", "--to", "dense").status == 0


def test_an_export_that_answers_otherwise_ends_with_1_and_leaves_nothing(run_cli, folder, monkeypatch):
    monkeypatch.setattr(pt2, "read", lambda path: lambda x: torch.zeros(len(x), 3))
    outcome = run_cli("export", "small", "--to", "pt2", "--check-samples", "4")
    assert (outcome.status, outcome.out, outcome.left) == (1, "", [])
    assert outcome.err.startswith(
        "compresskd: the exported model answers otherwise than its source on 4 random"
    )


def test_help_says_what_the_words_mean(run_cli):
    outcome = run_cli("export", "--help")
    assert outcome.status == 0
    assert "run directory, folder of a model, or .ckd file" in outcome.out

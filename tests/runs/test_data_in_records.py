"""What a run keeps of its data: the names of classes, what was noticed, predictions of any class."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import says

from compresskd.data import Source, assemble
from compresskd.engine.strategy import NotFiniteError, store_predictions
from compresskd.run import Record, RunDirectoryError, read_record
from compresskd.run.record import changed_data
from compresskd.tasks import Classification
from compresskd.training import Scores

SMALL = (
    "measure.latency=false",
    "teacher.hidden=[8]",
    "student.hidden=[8]",
    "rank=2",
    "epochs=1",
    "teacher_fit.epochs=1",
    "strategy=train",
)


def record_of(folder):
    """Read as strictly as JSON is defined: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "record.json").read_text(), parse_constant=refuse)


@pytest.fixture
def insects(work, monkeypatch):
    """DIR/train, val and test of two classes, 20, 4 and 8 images each; three test images are in train as well."""
    monkeypatch.setenv("COMPRESSKD_CACHE", str(work.parent / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4), ("test", 8)):
        for name, level in (("ant", 60), ("bee", 160)):
            folder = work / "insects" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = (level + rng.integers(0, 60, (8, 8))).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{number:02}.png")
    for number in range(3):
        copied = (work / "insects" / "train" / "ant" / f"{number:02}.png").read_bytes()
        (work / "insects" / "test" / "ant" / f"{number:02}.png").write_bytes(copied)
    return work / "insects"


@pytest.mark.slow
def test_what_was_noticed_is_said_and_recorded(run_cli, insects, work):
    (insects / "train" / "ant" / "x.heic").write_bytes(b"")
    (insects / "train" / "bee" / "y.png").write_bytes(b"garbage")
    options = ("data=image_folder", "data.path=insects", *SMALL, "hydra.run.dir=run")
    refused = run_cli(*options)
    assert refused.status == 2
    assert "insects/train/bee/y.png) cannot be decoded: it is no image of a known kind" in refused.err
    assert "data.skip_bad=true" in refused.err
    assert refused.left == []
    outcome = run_cli(*options, "data.skip_bad=true")
    assert outcome.status == 0, outcome.err
    said = "data: 3 of 16 test samples (19%) are in the train split as well"
    assert said in outcome.out
    data = record_of(work / "run")["data"]
    assert data["class_names"] == ["ant", "bee"]
    notices = {(notice["kind"], notice["split"]): notice for notice in data["notices"]}
    assert notices.keys() == {("other", "train"), ("skipped", "train"), ("identical", "test")}
    assert notices["skipped", "train"]["count"] == 1
    assert notices["identical", "test"]["examples"] == ["sample 0", "sample 1", "sample 2"]
    assert "train: 1 not read, since of another kind (1 .heic)" in outcome.out


@pytest.mark.slow
def test_renamed_classes_are_other_data(run_cli, insects, work):
    options = ("data=image_folder", "data.path=insects", *SMALL, "hydra.run.dir=run")
    assert run_cli(*options).status == 0
    assert "reproduced" in run_cli("evaluate", "run").out
    for split in ("train", "val", "test"):
        (insects / split / "ant").rename(insects / split / "anaconda")
    outcome = run_cli("evaluate", "run")
    assert outcome.status == 0
    assert "other data than the run's" in outcome.out
    record = record_of(work / "run")
    (work / "run" / "record.json").write_text(json.dumps(record | {"status": "interrupted"}))
    resumed = run_cli("resume", "run")
    assert resumed.status == 2
    assert "was begun on other data (class 0 was 'ant', it is 'anaconda' now: fingerprint" in resumed.err
    # an earlier version kept no names, and a fingerprint without them
    old = {
        key: value
        for key, value in record["data"].items()
        if key not in ("class_names", "batches_fingerprint")
    }
    old["fingerprint"] = record["data"]["batches_fingerprint"]
    (work / "run" / "record.json").write_text(json.dumps(record | {"status": "interrupted", "data": old}))
    assert run_cli("resume", "run").status == 0
    assert "reproduced" in run_cli("evaluate", "run").out


def test_reordered_classes_are_other_data(make_data):
    data = make_data()
    record = {"class_names": list("abcd"), "fingerprint": "1", "batches_fingerprint": "x"}
    then, same, fewer = (Record("s", {}, [], 0, data=record | changed) for changed in (
        {}, {"fingerprint": "1"}, {"fingerprint": "2", "class_names": list("abc")}))  # fmt: skip
    swapped = Record("s", {}, [], 0, data=record | {"fingerprint": "2", "class_names": list("bacd")})
    pixels = Record("s", {}, [], 0, data=record | {"fingerprint": "2"})
    assert changed_data(then, same) == ""
    assert changed_data(then, fewer).startswith("4 classes then, 3 now")
    assert changed_data(then, swapped).startswith("class 0 was 'a', it is 'b' now")
    assert changed_data(then, pixels) == "fingerprint 1 then, 2 now"
    assert data.class_names == ("0", "1", "2", "3")


def test_a_run_goes_on_with_the_same_names_only(make_data, make_experiment, execute, tmp_path):
    data = make_data()
    execute(make_experiment(tmp_path, data=data), tmp_path)
    renamed = dataclasses.replace(data, class_names=tuple("abcd"), fingerprint="0" * 16)
    stored = read_record(tmp_path / "run")
    text = json.dumps(dataclasses.asdict(stored) | {"status": "interrupted"})
    (tmp_path / "run" / "record.json").write_text(text)
    with pytest.raises(RunDirectoryError, match="class 0 was '0', it is 'a' now"):
        execute(make_experiment(tmp_path, data=renamed), tmp_path)


def test_classes_beyond_two_bytes_are_kept(tmp_path):
    """70,000 classes: two bytes would take class 65,536 for class 0."""

    class Holder:
        class run:  # noqa: N801
            place = tmp_path.joinpath

        data = None

    targets = torch.tensor([0, 65_535, 65_536, 69_999])
    Holder.data = type("D", (), {"task": Classification()})

    def scores(*classes):
        return Scores({}, torch.tensor(classes), targets, torch.zeros(4), Classification())

    predictions = torch.tensor([0, 65_536, 65_536, 3])
    store_predictions(Holder, "train", scores(*predictions.tolist()))
    store_predictions(Holder, "second", scores(0, 1, 2, 3))
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert arrays["targets"].tolist() == targets.tolist()
        assert arrays["train"].tolist() == predictions.tolist()
        assert arrays["train"].dtype == np.uint32
        assert arrays["second"].dtype == np.uint8
    with pytest.raises(ValueError, match=says("classes", "0", "-1")):
        store_predictions(Holder, "third", scores(-1, 0, 0, 0))


class Broken(torch.nn.Module):
    """Answers NaN as soon as it is evaluated."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.spec = {"target": "compresskd.models.mlp.MLP", "kwargs": {}}
        self.weight = torch.nn.Parameter(torch.zeros(64, num_classes))

    def forward(self, x):
        return x.flatten(1) @ self.weight / 0.0


def test_a_model_that_answers_nan_ends_the_run_and_not_the_json(
    make_data, make_experiment, execute, tmp_path
):
    experiment = make_experiment(tmp_path)
    broken = dataclasses.replace(experiment.teacher, weights=None)
    object.__setattr__(broken, "obtain", lambda reporter: (Broken().eval(), {"source": "test"}))
    with pytest.raises(NotFiniteError, match="teacher: the model's loss on the validation split is nan"):
        execute(dataclasses.replace(experiment, teacher=broken), tmp_path)
    assert record_of(tmp_path / "run")["status"] == "failed"


def test_nan_in_the_test_split_alone_is_refused_before_training(run_cli, work, monkeypatch):
    (work / "spoilt_data.py").write_text(
        """
import torch
from compresskd.data import Source, assemble

def load(name, **options):
    train = Source(torch.randn(60, 5), torch.arange(60) % 3)
    test = Source(torch.randn(12, 5), torch.arange(12) % 3)
    test.pixels[4, 1] = float("nan")
    return assemble(name, train, test=test, class_names="abc", mean=[0.0], std=[1.0], pixel_max=1, **options)
"""
    )
    (work / "my_conf" / "data").mkdir(parents=True)
    (work / "my_conf" / "data" / "spoilt.yaml").write_text(
        "_target_: spoilt_data.load\nname: spoilt\nnum_classes: 3\ninput_shape: [5]\nvalidation_fraction: 0.2\n"
        "validation_count: null\nsplit_seed: 0\naugmentation: null\naugmentation_bank: null\n"
    )
    monkeypatch.syspath_prepend(str(work))
    outcome = run_cli("--config-dir", "my_conf", "data=spoilt", *SMALL)
    assert outcome.status == 2
    assert (
        "1 of 12 test samples hold NaN or inf once they are normalised; the first is sample 4" in outcome.err
    )
    assert not (work / "outputs").exists()


def test_an_allowed_overlap_is_said(make_experiment, execute, tmp_path):
    rng = torch.Generator().manual_seed(0)
    train = Source(torch.randn(64, 1, 8, 8, generator=rng), torch.arange(64) % 4)
    test = Source(train.pixels[:16], train.targets[:16])
    other = Source(torch.randn(16, 1, 8, 8, generator=rng), torch.arange(16) % 4)
    data = assemble("x", train, test=test, validation=other, class_names="abcd", mean=[0.0], std=[1.0], pixel_max=1,
                    allow_overlap=True)  # fmt: skip
    record = execute(make_experiment(tmp_path, data=data), tmp_path)
    (notice,) = record.data["notices"]
    assert (notice["kind"], notice["count"]) == ("identical", 16)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data: 16 of 16 test samples (1e+02%) are in the train split as well" not in log
    assert "data: 16 of 16 test samples (100%) are in the train split as well" in log

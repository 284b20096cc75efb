"""Samples without labels: where they are read, in which order they come, and who sees them."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from compresskd.data.alternating import with_unlabelled
from compresskd.data.base import Data, TensorSplit
from compresskd.data.image_folder import image_folder
from compresskd.data.normalize import Normalize
from compresskd.data.table.tables import table
from compresskd.data.unlabelled import without_labels
from compresskd.kd.decoupled import DKD, NKD
from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.tasks import UNLABELLED, Classification

CUTS = {"test_fraction": 0.2, "validation_fraction": 0.2, "split_seed": 0}


def split(name, count, start=0):
    values = torch.arange(start, start + count, dtype=torch.float32)[:, None]
    targets = torch.arange(count) % 3
    return TensorSplit(name, values, torch.arange(count), targets, Normalize((0.0,), (1.0,), 1.0), name)


@pytest.fixture
def both(digits):
    return with_unlabelled(both_of(digits)).train


@pytest.fixture(scope="module")
def digits():
    train = split("train", 10)
    nothing = (0.0,), (1.0,), "", ""
    return Data("numbers", train, train, train, 3, (1,), ("a", "b", "c"), *nothing)


def both_of(data):
    alone = split("unlabelled", 21, 100)
    alone = dataclasses.replace(alone, targets=without_labels(21, alone.targets))
    return dataclasses.replace(data, unlabelled=alone)


def read(batches):
    return [(batch.labelled, batch.index.tolist(), batch.inputs[:, 0].tolist()) for batch in batches]


def test_each_sample_comes_once_an_epoch_in_a_batch_of_its_kind(both):
    found = list(both.batches(4, epoch=3, seed=1))
    assert (
        len(found) == both.num_batches(4) == 8
    )  # 3 of those with labels, 5 of the others: one sample is left out
    for batch in found:
        assert (batch.inputs[:, 0] >= 100).all() != batch.labelled
        assert bool((batch.targets == UNLABELLED).all()) != batch.labelled
    index = torch.cat([batch.index for batch in found])
    assert len(index.unique()) == len(index) == 30
    values = torch.cat([batch.inputs[:, 0] for batch in found])
    assert torch.equal(values, torch.where(index < 10, index, index + 90).float())


def test_batches_are_a_pure_function_of_seed_epoch_and_step(both):
    whole = read(both.batches(4, epoch=2, seed=5))
    assert read(both.batches(4, epoch=2, seed=5)) == whole
    assert [read(both.batches(4, epoch=2, seed=5, start=start)) for start in range(9)] == [
        whole[start:] for start in range(9)
    ]
    assert read(both.batches(4, epoch=3, seed=5)) != whole
    assert read(both.batches(4, epoch=2, seed=6)) != whole


def test_kinds_are_spread_over_the_epoch(both):
    for epoch in range(5):
        kinds = [batch.labelled for batch in both.batches(2, epoch=epoch, seed=0)]
        places = [place for place, labelled in enumerate(kinds) if labelled]
        assert all(1 <= b - a <= 4 for a, b in pairwise(places))


def test_in_order_the_labelled_samples_come_first(both):
    index = torch.cat([batch.index for batch in both.batches(4, view=0)])
    assert torch.equal(index, torch.arange(31))


def test_every_sample_comes_once_with_its_kind(both):
    found = list(both.every_sample(4, view=0))
    assert len(found) == both.num_batches(4, training=False)
    assert torch.equal(torch.cat([batch.index for batch in found]).sort().values, torch.arange(31))
    assert all(bool((batch.index < 10).all()) == batch.labelled for batch in found)


def test_an_epoch_with_accumulation_is_the_mean_over_all_rows(digits):
    """The gradient of one update over all batches: labels count once, and the teacher for every sample."""
    from compresskd.stages.train_student import Comparison, compared

    data = with_unlabelled(both_of(digits))
    torch.manual_seed(0)
    student, teacher = nn.Linear(1, 3), nn.Linear(1, 3)
    objective = Objective(
        {"cross_entropy": CrossEntropy(weight=0.3), "soft_targets": SoftTargets(weight=0.7)}
    )
    bound = objective.bind(student, teacher, torch.zeros(2, 1))
    task = Classification()
    with bound.attached(student, teacher) as captured:
        comparison = Comparison("", bound, captured, lambda b: task.rows(teacher(b.inputs), b)[0])
        batches = list(data.train.batches(4, epoch=0, seed=0))
        total = sum(compared(student(b.inputs), b, task, [comparison]).total * len(b) for b in batches)
        by_batch = torch.autograd.grad(total / sum(map(len, batches)), list(student.parameters()))
        x = torch.cat([b.inputs for b in batches])
        y = torch.cat([b.targets for b in batches])
        kd = SoftTargets()(
            *(task.rows(m(x), b)[0] for m, b in ((student, batches[0]), (teacher, batches[0]))), y
        )
        ce = nn.functional.cross_entropy(student(x[y >= 0]), y[y >= 0], reduction="sum") / len(x)
        whole = torch.autograd.grad(0.7 * kd + 0.3 * ce, list(student.parameters()))
    for one, other in zip(by_batch, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_terms_that_need_labels_are_named():
    terms = {"dkd": DKD(), "nkd": NKD(), "soft": SoftTargets(), "ce": CrossEntropy()}
    assert [e.field for e in Objective(terms).unlabelled_faults()] == ["terms.dkd", "terms.nkd"]


def test_a_table_has_rows_without_a_target(tmp_path):
    (tmp_path / "it.csv").write_text("a,b,y\n" + "".join(f"{i},{'xy'[i % 2]},{i * i}\n" for i in range(40)))
    (tmp_path / "more.csv").write_text("b,a\n" + "".join(f"{'xz'[i % 2]},{i / 3}\n" for i in range(7)))
    options = {
        "name": "table", "target": "y", "columns": None, "categorical": [], "weight_column": None,
        "class_weights": None, "asks": "values", "train_split": None, "validation_split": None, "test_split": None,
        "path": str(tmp_path / "it.csv"), **CUTS,
    }  # fmt: skip
    plain, data = table(**options), table(**options, unlabelled_path=str(tmp_path / "more.csv"))
    assert data.fingerprint == plain.fingerprint
    assert (len(data.unlabelled), data.unlabelled.input_shape) == (7, plain.train.input_shape)
    assert data.unlabelled.targets.isnan().all()
    assert "unseen" in {notice.kind for notice in data.notices if notice.split == "unlabelled"}
    (tmp_path / "other.csv").write_text("b\nx\n")
    with pytest.raises(ValueError, match="unlabelled_path"):
        table(**options, unlabelled_path=str(tmp_path / "other.csv"))


def test_a_folder_of_images_is_read_to_its_depths(class_folders, tmp_path):
    root, _ = class_folders
    loose = tmp_path / "loose" / "deep"
    loose.mkdir(parents=True)
    for number, file in enumerate(sorted((root / "train").rglob("*.png"))[:5]):
        (loose / f"{number}.png").write_bytes(file.read_bytes())
    options = {
        "name": "insects", "size": None, "channels": None, "mean": None, "std": None, "test_fraction": 0.2,
        "cache_dir": None, "max_in_memory_bytes": 10**9, "validation_fraction": 0.2, "path": str(root),
    }  # fmt: skip
    data = image_folder(**options, unlabelled_path=str(tmp_path / "loose"))
    assert (len(data.unlabelled), data.unlabelled.targets.unique().tolist()) == (5, [UNLABELLED])
    assert any("unlabelled samples" in notice.text for notice in data.notices if notice.kind == "identical")
    assert image_folder(**options).fingerprint == data.fingerprint

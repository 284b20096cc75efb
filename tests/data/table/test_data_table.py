import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from refusals import fault, refused, says

from compresskd.data.table.encode import inputs_of
from compresskd.data.table.tables import diabetes, multi_label, table

CUTS = {"test_fraction": 0.2, "validation_fraction": 0.2, "split_seed": 0}
OPTIONS = {
    "name": "table", "target": "y", "columns": None, "categorical": [], "weight_column": None, "class_weights": None,
    "asks": None, "train_split": None, "validation_split": None, "test_split": None, **CUTS,
}  # fmt: skip


def columns(count=50, seed=0, **more):
    rng = np.random.default_rng(seed)
    return {
        "size": rng.normal(5, 3, count).round(4).tolist(),
        "colour": rng.choice(["red", "green", "blue"], count).tolist(),
        "wet": (rng.random(count) > 0.5).tolist(),
        "y": rng.normal(-2, 4, count).round(4).tolist(),
        **more,
    }


@pytest.fixture
def write(tmp_path):
    def write(values, name="it.csv"):
        file = tmp_path / name
        names, rows = list(values), list(zip(*values.values(), strict=True))
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.table(values), file)
        elif name.endswith(".csv"):
            lines = [",".join("" if v is None else str(v) for v in row) for row in rows]
            file.write_text("\n".join([",".join(names), *lines]) + "\n")
        else:
            file.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
        return str(file)

    return write


def load(path, **options):
    return table(**{**OPTIONS, "path": path, **options})


def inputs(split):
    (batch,) = split.batches(len(split))
    return batch.inputs


@pytest.mark.parametrize("name", ["it.csv", "it.parquet", "it.jsonl"])
def test_numbers_are_standardized_and_categories_have_a_place_each(write, name):
    data = load(write(columns(), name))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 8, 10]
    assert (data.input_shape, data.num_classes, data.class_names) == ((5,), 1, ("y",))
    train = inputs(data.train)
    torch.testing.assert_close(train[:, 0].mean(), torch.zeros(()), atol=1e-6, rtol=0)
    torch.testing.assert_close(train[:, 0].std(correction=0), torch.ones(()))
    assert (train[:, 1:4].sum(1) == 1).all()
    assert data.preprocessing["columns"][1] == {"name": "colour", "categories": ["blue", "green", "red"]}
    torch.testing.assert_close(data.train.targets.mean(0), torch.zeros(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.targets.std(0, correction=0), torch.ones(1))


def test_files_of_every_kind_are_the_same_data(write):
    names = ("it.csv", "it.parquet", "it.jsonl")
    assert len({load(write(columns(), name)).fingerprint for name in names}) == 1


def test_what_preprocessing_says_gives_the_inputs_of_the_split(write, tmp_path):
    write(columns(), "train.csv")
    test = columns(9, seed=1)
    write(test, "test.csv")
    data = load(str(tmp_path))
    assert len(data.test) == 9
    preprocessing = json.loads(json.dumps(data.preprocessing))
    found = inputs_of(preprocessing, test)
    np.testing.assert_array_equal(found, inputs(data.test).numpy())
    said = preprocessing["targets"]
    back = data.test.targets.double() * torch.tensor(said["std"]) + torch.tensor(said["mean"])
    np.testing.assert_allclose(back[:, 0].numpy(), test["y"], rtol=1e-5)
    with pytest.raises(ValueError, match="colour"):
        inputs_of(preprocessing, {"size": [1.0]})
    with pytest.raises(ValueError, match="wet"):
        inputs_of(preprocessing, {**test, "wet": [None] * 9})


def test_targets_are_classes_labels_or_values_as_the_task_or_the_column_says(write):
    few = write(columns(kind=[0, 1] * 25, name=["p", "q"] * 25), "few.csv")
    assert load(few, target="kind").train.targets.dtype == torch.int64
    assert load(few, target="kind", asks="values").train.targets.dtype == torch.float32
    data = load(few, target="name", asks="classes")
    assert (data.class_names, data.num_classes) == (("p", "q"), 2)
    assert data.test.targets.bincount().tolist() == [5, 5]
    labels = load(few, target=["kind", "wet"], asks="labels")
    assert (labels.num_classes, labels.input_shape) == (2, (1 + 3 + 1 + 2,))
    assert set(labels.train.targets.unique().tolist()) == {0.0, 1.0}
    assert load(few, target=["size", "y"]).num_classes == 2


def test_numbers_that_are_categories(write):
    path = write(columns(zone=[1, 2, 3, 4, 5] * 10))
    data = load(path, columns=["zone", "size"], categorical=["zone"])
    assert data.input_shape == (6,)
    assert data.preprocessing["columns"][0]["categories"] == ["1", "2", "3", "4", "5"]


def test_categories_that_train_lacks_are_told_and_have_no_place(write, tmp_path):
    write(columns(), "train.csv")
    write(columns(9, seed=1, colour=["pink"] * 9), "test.csv")
    data = load(str(tmp_path))
    (notice,) = [notice for notice in data.notices if notice.kind == "unseen"]
    assert (notice.split, notice.count) == ("test", 9)
    assert (inputs(data.test)[:, 1:4] == 0).all()


def test_weights_are_those_of_training_rows(write):
    path = write(columns(kind=["a"] * 40 + ["b"] * 10, w=[2.0] * 50))
    data = load(path, target="kind", weight_column="w", class_weights="balanced")
    (batch,) = data.train.batches(32, epoch=0)
    assert data.input_shape == (6,)  # y is a number like others here, w is none
    counts = data.train.targets.bincount()
    torch.testing.assert_close(batch.weights, 2.0 * 32 / (2 * counts[batch.targets]))
    assert next(data.test.batches(4)).weights is None
    assert data.fingerprint != load(path, target="kind", columns=["size", "colour", "wet", "y"]).fingerprint


def test_sets_of_scikit_learn_need_no_download():
    data = diabetes(name="diabetes", **CUTS)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [283, 71, 88]
    assert (data.input_shape, data.class_names) == ((10,), ("progression",))
    assert data.preprocessing["targets"]["mean"] == pytest.approx([152], abs=8)
    data = multi_label(name="m", num_samples=200, num_features=7, num_labels=3, data_seed=0, **CUTS)
    assert (data.input_shape, data.num_classes) == ((7,), 3)
    assert set(data.train.targets.unique().tolist()) == {0.0, 1.0}


BAD = {
    "no path": ({}, {"path": None}, says("path", "null")),
    "no target": ({}, {"target": None}, says("target", "null", "size, colour, wet, y")),
    "target": ({}, {"target": "colur"}, says("target", "colur", "did you mean colour")),
    "column": ({}, {"columns": ["sise"]}, says("columns", "did you mean size")),
    "target among inputs": ({}, {"columns": ["y", "size"]}, says("columns", "given away")),
    "category": ({}, {"categorical": ["y"]}, says("categorical", "'y'")),
    "weight": ({}, {"weight_column": "w"}, says("weight_column", "'w'")),
    "negative weight": ({"w": [-1.0] * 50}, {"weight_column": "w"}, says("weight_column", ">= 0")),
    "classes of strings": ({}, {"target": "colour", "asks": "values"}, says("target", "numbers", "string")),
    "classes of numbers": ({}, {"asks": "classes"}, says("target", "whole numbers", "task=regression")),
    "labels of numbers": ({}, {"target": ["y"], "asks": "labels"}, says("target", "0 or 1")),
    "several classes": ({}, {"target": ["y", "wet"], "asks": "classes"}, says("target", "probabilities")),
    "tokens": ({}, {"asks": "tokens"}, says("asks", "tokens")),
    "constant target": ({"y": [3.0] * 50}, {}, says("target", "same")),
    "identifiers": ({"id": [f"row {i}" for i in range(50)]}, {"columns": ["id"]}, None),
    "classes declared": ({"y": ["a", "b"] * 25}, {"num_classes": 3}, says("num_classes", "3", "2")),
}  # fmt: skip


@pytest.mark.parametrize(("more", "options", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(write, more, options, message, monkeypatch):
    monkeypatch.setattr("compresskd.data.table.encode._MOST_CATEGORIES", 20)
    path = write(columns(**more))
    with pytest.raises(ValueError, match=message or says("columns", "'id'", "20 categories")):
        load(**{"path": path, **options})


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_values_that_are_missing_are_refused_with_their_row(write, bad):
    values = columns()
    values["size"][7] = bad
    with pytest.raises(ValueError, match=r"size .* 1 of 50 rows .*row 7"):
        load(write(values, "it.parquet"))


def test_missing_cells_of_files_are_refused(write):
    values = columns()
    values["colour"][3] = None
    with pytest.raises(ValueError, match=r"colour .* 1 of 50 rows .*row 3"):
        load(write(values))
    with pytest.raises(ValueError, match=says("path", ".csv")):
        load(__file__)


def test_dates_are_no_inputs(write):
    with pytest.raises(ValueError, match=says("columns", "'day'", "leave it out")):
        load(write(columns(day=["2026-01-02"] * 50)))


def shares(count, seed=0):
    """Columns of two numbers, and of probabilities of three classes that these tell."""
    inputs = np.random.default_rng(seed).normal(size=(count, 2))
    raw = np.exp(3 * np.stack([inputs[:, 0], inputs[:, 1], -inputs.sum(1)], 1))
    soft = (raw / raw.sum(1, keepdims=True)).round(6)
    soft[:, 2] = 1 - soft[:, :2].sum(1)
    return {"a": inputs[:, 0].tolist(), "b": inputs[:, 1].tolist()} | {
        f"p{k}": soft[:, k].tolist() for k in range(3)
    }


def test_several_targets_of_classes_are_their_probabilities(write):
    values = shares(50)
    data = load(write(values), target=["p0", "p1", "p2"], asks="classes")
    assert data.class_names == ("p0", "p1", "p2")
    assert data.train.targets.dtype == torch.float32
    assert torch.allclose(data.train.targets.sum(1), torch.ones(len(data.train)), atol=1e-5)
    found = torch.cat([split.targets for split in (data.train, data.validation, data.test)])
    assert sorted(found[:, 1].tolist()) == pytest.approx(sorted(values["p1"]), abs=1e-6)


@pytest.mark.parametrize("bad", [0.9, -0.1, 2.0])
def test_probabilities_that_are_none_are_refused_with_their_row(write, bad):
    values = shares(50)
    values["p1"][7] = bad
    with pytest.raises(ValueError, match="target") as caught:
        load(write(values), target=["p0", "p1", "p2"], asks="classes")
    assert f"{bad:g}" in str(caught.value)
    assert "multi_label" in str(caught.value)


@pytest.mark.slow
def test_a_model_is_trained_by_soft_labels_and_judged_by_the_most_probable_class(run_cli, work, write):
    typed = ["data=table", f"data.path={write(shares(600))}", "data.target=[p0,p1,p2]"]
    ended = run_cli(
        *typed, "strategy=distill_then_compress", "rank=4", "bits=4", "epochs=20", "hydra.run.dir=run"
    )
    assert ended.status == 0, ended.err
    final = json.loads((work / "run" / "record.json").read_text())["stages"][-1]
    assert final["metrics"]["test_accuracy"] > 0.85
    kept = np.load(work / "run" / "predictions.npz")
    (targets,) = [kept[name] for name in kept.files if name.endswith("targets")]
    assert targets.ndim == 1
    assert set(targets.tolist()) <= {0, 1, 2}
    again = run_cli("evaluate", "run")
    assert again.status == 0, again.err + again.out


@pytest.mark.parametrize("other", ["train.mixup=0.2", "data.class_weights=balanced"])
def test_what_needs_a_class_is_refused_beside_soft_labels(run_cli, write, other):
    typed = ["data=table", f"data.path={write(shares(60))}", "data.target=[p0,p1,p2]"]
    refused(run_cli(*typed, other), fault(other.split("=")[0], "null"))


def test_independent_labels_are_no_soft_labels(run_cli):
    refused(run_cli("task=classification", "data=multi_label"), fault("task", "probabilities"))

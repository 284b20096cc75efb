"""What `import compresskd` offers: shown, loaded when it is asked for, its examples run."""

import doctest
import importlib
import inspect
import logging
import pydoc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.sampler import SubsetRandomSampler

import compresskd
from compresskd.api.samples import data_of
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register
from compresskd.engine.teacher import Teacher
from compresskd.listeners.console import Reporter
from compresskd.models.build import build
from compresskd.run import RunDirectoryError, open_run
from compresskd.training import EpochRecord

ROOMS = [
    "compresskd",
    *(f"compresskd.api.{name}" for name in ("functions", "names", "comparison", "runs")),
]
STORED = Path(__file__).parents[1] / "stored_runs"


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_examples_of_the_documentation(room):
    result = doctest.testmod(importlib.import_module(room), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_training_a_compression_and_a_comparison_take_ten_lines():
    notebook = (inspect.getdoc(compresskd) or "").partition("\nThe table")[0]
    lines = [line for line in notebook.splitlines() if line.startswith((">>> ", "... "))]
    assert len(lines) == 10
    for name in ("train", "compress", "distill", "compare_compression_strategies"):
        assert any(f"compresskd.{name}(" in line for line in lines)


def test_dir_and_help_show_every_name_with_its_example():
    assert set(compresskd.__all__) == set(dir(compresskd))
    text = pydoc.plain(pydoc.render_doc(compresskd))
    for name in set(dir(compresskd)) - {"__version__"}:
        assert name in text
        documented = f"{getattr(compresskd, name).__doc__} {compresskd.__doc__}"
        assert f"compresskd.{name}(" in documented or name == "load"
    with pytest.raises(AttributeError, match="no attribute 'comprress'"):
        _ = compresskd.comprress


def test_nothing_is_loaded_before_it_is_asked_for():
    code = "import sys, compresskd; dir(compresskd); compresskd.results; compresskd.Run; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


@pytest.fixture
def blobs():
    """Inputs and targets of three classes that a linear layer tells apart."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(120) % 3
    return torch.randn(120, 12, generator=generator) + 4 * torch.eye(3, 12)[targets], targets


def halves(blobs):
    x, y = blobs
    return (x[:84], y[:84]), (x[84:], y[84:])


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))


def accuracy(model, samples):
    with torch.no_grad():
        return float((model(samples[0]).argmax(1) == samples[1]).float().mean())


# What the functions do


@pytest.mark.slow
def test_train_compress_distill_and_quantize(blobs, caplog):
    train, validation = halves(blobs)
    curve = []
    teacher = compresskd.train(perceptron(), train, validation, epochs=4, lr=1e-2, on_epoch=curve.append)
    assert [type(record) for record in curve] == [EpochRecord] * 4
    assert accuracy(teacher, validation) > 0.9
    assert not teacher.training
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    with caplog.at_level(logging.WARNING, "compresskd"):
        small = compresskd.compress(teacher, train[0][:8], rank=2, exclude=["4"])
    assert [type(small[i]).__name__ for i in (0, 2)] == ["TTLinear"] * 2
    assert isinstance(small[4], nn.Linear)
    assert "factorize: 4 left as it was (" in caplog.text  # nothing is left out without a word

    student = compresskd.distill(small, teacher, train, validation, epochs=4, lr=1e-2)
    assert student is small
    assert accuracy(student, validation) > 0.9
    rounded = compresskd.quantize(student, train, validation, bits=4, epochs=2, lr=1e-3, teacher=teacher)
    assert all(len(core.unique()) <= 16 for core in rounded[0].cores)
    assert accuracy(rounded, validation) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_generators_of_the_notebook_go_on_as_they_would_have(blobs):
    train, validation = halves(blobs)
    model = nn.Linear(12, 3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compresskd.train(model, train, validation, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_options_reach_the_stages(blobs):
    train, _ = halves(blobs)
    model = perceptron()
    exact = compresskd.compress(model, train[0], rank=48, keep_larger=True)
    assert torch.allclose(exact(train[0]), model(train[0]), atol=1e-4)
    dropped = compresskd.compress(model, train[0], max_drop=50.0, validation=train)
    assert sum(p.numel() for p in dropped.parameters()) < sum(p.numel() for p in model.parameters())
    some = compresskd.compress(model, train, tolerance=0.5, exclude=["0"], whitening="input")
    assert isinstance(some[0], nn.Linear)
    with pytest.raises(ValueError, match="method"):
        compresskd.compress(model, train[0], method="magic")
    with pytest.raises(ValueError, match="max_drop"):
        compresskd.compress(model, train, max_drop=1.0)
    with pytest.raises(ValueError, match="epochs"):
        compresskd.quantize(model, train, epochs=1)
    with pytest.raises(ValueError, match="epochs"):
        compresskd.quantize(model, train[0], train, epochs=1)
    with pytest.raises(ValueError, match="alpha"):
        compresskd.LogitsDistillationLoss(alpha=1.5)


def test_a_layer_by_itself_is_a_model_too(blobs):
    train, _ = halves(blobs)
    layer = nn.Linear(12, 48)
    assert type(compresskd.compress(layer, train[0], rank=2)).__name__ == "TTLinear"


def test_inputs_are_made_up_where_the_first_layer_tells_them():
    images = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9)
    )
    assert type(compresskd.convert_to_tensor_train(images, rank=4)[0]).__name__ == "TTConv2d"
    words = nn.Sequential(nn.Embedding(500, 32), nn.Flatten(), nn.Linear(256, 64))
    assert type(compresskd.convert_to_tensor_train(words, rank=4)[2]).__name__ == "TTLinear"

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x["features"])

    with pytest.raises(ValueError, match="example"):
        compresskd.convert_to_tensor_train(Odd(), rank=4)


def test_rounded_weights_are_trained_by_any_loop(blobs):
    x, y = blobs
    model = compresskd.convert_to_qat(perceptron(), n_bits=4)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(model[2].weight[0].unique()) <= 16


# Samples


class Flipped(Dataset):
    """Augments by itself."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, position):
        return self.x[position] * (1 if torch.rand(()) < 0.5 else -1), self.y[position]


@pytest.mark.parametrize("kind", ["pair", "arrays", "dataset", "loader", "shuffled"])
def test_every_form_of_samples_gives_the_same_training(blobs, kind):
    def made(x, y):
        forms = {
            "pair": lambda: (x, y),
            "arrays": lambda: (x.numpy(), y.numpy()),
            "dataset": lambda: TensorDataset(x, y),
            "loader": lambda: DataLoader(TensorDataset(x, y), batch_size=64, drop_last=True),
            "shuffled": lambda: DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True),
        }
        return forms[kind]()

    train, validation = halves(blobs)
    expected = compresskd.train(perceptron(), train, validation, epochs=1)
    model = compresskd.train(perceptron(), made(*train), made(*validation), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_loader_of_some_samples_gives_those(blobs):
    data = TensorDataset(*blobs)
    loader = DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(range(30)))
    assert len(data_of(loader, blobs).train) == 30


def test_a_notebook_shows_a_line_an_epoch_where_no_log_is_shown(blobs, capsys, monkeypatch):
    train, validation = halves(blobs)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    compresskd.train(perceptron(), train, validation, epochs=2)
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    compresskd.train(perceptron(), train, validation, epochs=2)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert logging.getLogger("compresskd").handlers == []


def test_samples_that_cannot_be_used_are_refused(blobs, caplog):
    x, y = blobs
    with pytest.raises(ValueError, match="train: its data set gives other values each time"):
        data_of(DataLoader(Flipped(x, y)), (x, y))
    with pytest.raises(ValueError, match="train: expected as many targets as inputs"):
        data_of((x, y[:3]), (x, y))
    with pytest.raises(ValueError, match="train: expected as many targets as inputs"):
        data_of((x, torch.eye(3)[y]), (x, y))
    with pytest.raises(ValueError, match="train: expected a pair"):
        data_of((x, y, y), (x, y))
    with caplog.at_level(logging.WARNING, "compresskd"):
        data_of((x, y), (x[:30], y[:30]))
    assert "30 of 30 validation samples (100%) are in the train split as well" in caplog.text


# The comparison


@pytest.mark.slow
def test_a_comparison_is_the_study_of_the_command_line(tmp_path):
    """The same data, teacher and student give the same scores, to the last sample."""
    register()
    lines = [
        "measure.latency=false",
        "data=synthetic", "data.num_train=128", "data.num_test=64", "data.separation=0.5", "teacher.hidden=[24]",
        "student.hidden=[24]", "strategy=distill_then_compress", "rank=2", "total_epochs=4", "seed=3",
        f"outputs_dir={tmp_path}", "compress.num_calibration=32",
    ]  # fmt: skip
    (experiment,) = build_jobs(compose_jobs(lines).jobs)
    options = {"hidden": [24], "num_classes": 4, "input_shape": [1, 8, 8]}
    teacher = build("compresskd.models.mlp.MLP", options, seed=7)
    weights = tmp_path / "teacher.pt"
    torch.save(teacher.state_dict(), weights)
    given = Teacher(lambda: build("compresskd.models.mlp.MLP", options, seed=0), weights=weights)
    run = open_run(tmp_path / "run")
    record = replace(experiment, teacher=given).run(run, Reporter())
    run.close()

    def samples(split):
        (batch,) = split.batches(len(split))
        return batch.inputs, batch.targets

    data = experiment.data
    table = compresskd.compare_compression_strategies(
        teacher, samples(data.train), samples(data.validation), test_loader=samples(data.test), rank=2, epochs=4,
        strategies=["distill_then_compress", "distill_matched"], seeds=[3],
        overrides=["compress.num_calibration=32"], as_rows=True,
    )  # fmt: skip
    first, second, third = table
    assert (first["strategy"], first["teacher_agreement"], first["times_fewer"]) == ("teacher", 1.0, 1.0)
    assert (second["strategy"], second["seed"]) == ("distill_then_compress", 3)
    final = record.stages[-1]
    for name in ("validation_accuracy", "test_accuracy", "teacher_agreement"):
        assert second[name] == final["metrics"][name]
    assert second["num_parameters"] == final["size"]["num_parameters"]
    assert third["num_parameters"] < first["num_parameters"]


@pytest.mark.slow
def test_a_strategy_that_cannot_be_run_has_a_row_that_says_why(blobs):
    train, validation = halves(blobs)
    rows = compresskd.compare_compression_strategies(
        perceptron(), train, validation, rank=2, epochs=3,
        strategies=["train", "distill_matched", "distill_then_compress"], as_rows=True,
    )  # fmt: skip
    notes = {row["strategy"]: row["note"] for row in rows}
    assert notes["teacher"] == notes["train"] == ""
    assert "does not say how it was built" in notes["distill_matched"]
    assert "total_epochs" in notes["distill_then_compress"]
    with pytest.raises(ValueError, match="trainn"):
        compresskd.compare_compression_strategies(perceptron(), train, validation, strategies=["trainn"])


# Runs on disk


def test_results_are_a_table_or_rows(monkeypatch):
    rows = compresskd.results(STORED, as_rows=True)
    assert {row["status"] for row in rows} == {"finished", "interrupted"}
    finished = next(row for row in rows if row["run"].endswith("multi_stage"))
    record = compresskd.Run(finished["directory"]).record
    assert finished["test_accuracy"] == record.stages[-1]["metrics"]["test_accuracy"]
    assert len(compresskd.results(STORED / "multi_stage", stage="all", as_rows=True)) == len(record.stages)
    pandas = pytest.importorskip("pandas")
    frame = compresskd.results(STORED)
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert compresskd.results(STORED) == rows
    with pytest.raises(RunDirectoryError, match="no record was read there"):
        compresskd.results(STORED / "nowhere")


def test_a_run_is_read():
    run = compresskd.Run(STORED / "multi_stage")
    assert run.record.status == "finished"
    assert set(run.curves["stage"]) <= {stage["name"] for stage in run.record.stages}
    assert {"targets", "teacher", run.record.final} <= set(run.predictions)
    model, first = run.model(), run.model(run.record.stages[0]["name"])
    shape = run.record.config["data"]["input_shape"]
    assert model(torch.zeros(1, *shape)).shape == first(torch.zeros(1, *shape)).shape
    with pytest.raises(RunDirectoryError, match="no finished stage 'nope'"):
        run.model("nope")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        compresskd.Run(STORED)

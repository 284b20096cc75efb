"""Parameters, and how latency is taken."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compresskd import measure
from compresskd.compare.records import read_record
from compresskd.data.base import TensorSplit
from compresskd.engine import strategy
from compresskd.listeners.console import stages_table
from compresskd.measure import macs
from compresskd.quant.prepare import QuantSpec, prepare
from compresskd.run.validity import check_record


class TestParameters:
    def test_tied_count_once(self):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        assert measure.num_parameters(nn.Sequential(first, second)) == 16 + 4 + 4

    @pytest.mark.parametrize("estimator", ["lsq", "straight_through"])
    def test_scales_of_quantizers_do_not_count(self, estimator):
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        prepare(model, QuantSpec(bits=4, activation_bits=8, estimator=estimator))
        learned = sum(p.numel() for n, p in model.named_parameters() if n.endswith("log_scale"))
        assert learned == (3 + 2 + 2 if estimator == "lsq" else 0)
        assert measure.num_parameters(model) == 4 * 3 + 3 + 3 * 2 + 2

    def test_buffers_do_not_count(self):
        assert measure.num_parameters(nn.BatchNorm2d(8)) == 16


class Counting(nn.Module):
    def __init__(self, log, name):
        super().__init__()
        self.log, self.name = log, name

    def forward(self, x):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.log.append((self.name, x.shape[0]))
        return x


class TestLatency:
    def test_structure_and_turns(self):
        log = []
        models = {"a": Counting(log, "a"), "b": Counting(log, "b")}
        times = measure.latency(models, torch.zeros(1, 3), batch_sizes=(1, 8), seconds=0.0)
        assert {name: list(batches) for name, batches in times.items()} == {
            "a": ["batch_1", "batch_8"],
            "b": ["batch_1", "batch_8"],
        }
        assert all(value > 0 for batches in times.values() for value in batches.values())
        warm, turns = ["a", "a", "b", "b"], ["a", "b"] * 5
        assert [name for name, size in log if size == 1] == warm + turns
        assert [name for name, size in log if size == 8] == warm + turns
        assert models["a"].training

    def test_median_in_milliseconds(self, monkeypatch):
        seconds = iter([0.001, 0.5, 0.002, 0.003, 0.004])
        monkeypatch.setattr("compresskd.measure.costs._timed", lambda model, batch: next(seconds))
        times = measure.latency({"a": nn.Identity()}, torch.zeros(1, 3), batch_sizes=(4,), seconds=0.0)
        assert times == {"a": {"batch_4": 3.0}}

    def test_no_more_rounds_than_a_median_needs(self):
        log = []
        measure.latency({"a": Counting(log, "a")}, torch.zeros(1, 3), batch_sizes=(1,), seconds=1e9)
        assert len(log) == 2 + 200

    @pytest.mark.parametrize("measured", [True, False])
    def test_a_run_measures_it_or_records_null(self, make_experiment, execute, tmp_path, measured):
        record = execute(replace(make_experiment(tmp_path), measure_latency=measured), tmp_path)
        beside = {"dense_student", "teacher"} if measured else set()
        assert [set(stage["latency_ms_beside"]) for stage in record.stages] == [beside] * 3
        times = [entry["latency_ms"] for entry in (record.teacher, *record.stages)]
        assert all(set(each) == {"batch_1", "batch_32"} if measured else each is None for each in times)

        compared = read_record(tmp_path / "run" / "record.json")
        assert compared.problems == ()
        assert [bool(stage.latency_ms) for stage in compared.stages] == [measured] * 3
        rows = list(stages_table(record).columns[0].cells)
        assert ("latency, batch 1, ms" in rows) == ("  times faster than teacher" in rows) == measured

    def test_all_seeds_measure_the_same_typical_sample(self, make_experiment, execute, tmp_path, monkeypatch):
        counted = []

        def count(model, example):
            counted.append(example)
            return macs.count(model, example)

        monkeypatch.setattr(strategy, "macs", SimpleNamespace(count=count))
        monkeypatch.setattr(TensorSplit, "typical", property(lambda split: len(split) - 1))
        for seed in (0, 1):
            made = make_experiment(tmp_path / str(seed), seed=seed)
            execute(made, tmp_path / str(seed))
        last = list(made.data.validation.batches(1))[-1].inputs
        assert len(counted) == 2 * (1 + 3)  # of the stage that trains the teacher, and of three
        assert all(torch.equal(example, last) for example in counted)

    def test_batches_beyond_those_of_an_evaluation_are_not_timed(self, make_experiment, execute, tmp_path):
        made = make_experiment(tmp_path, recipe={"evaluation_batch_size": 31})
        record = execute(replace(made, measure_latency=True), tmp_path)
        assert all(set(stage["latency_ms"]) == {"batch_1"} for stage in record.stages)
        rows = list(stages_table(record).columns[0].cells)
        assert "latency, batch 32, ms" not in rows
        assert "  times faster than teacher" in rows

    @pytest.mark.parametrize(
        "latency", [None, "absent", {"batch_1": 0.1, "batch_32": 0.2}, {"batch_32": 0.1}]
    )
    def test_a_record_has_that_of_one_sample_or_none(self, latency):
        metrics = {"validation_accuracy": 0.5, "test_accuracy": 0.5}
        teacher = {
            "metrics": metrics,
            "size": {"num_parameters": 1, "folder_bytes": 1},
            "latency_ms": latency,
        }
        if latency == "absent":
            del teacher["latency_ms"]
        values = {"strategy": "s", "config": {}, "overrides": [], "seed": 0, "teacher": teacher}
        if latency == {"batch_32": 0.1}:
            with pytest.raises(ValueError, match=r"teacher\.latency_ms\.batch_1: expected a finite number"):
                check_record(values)
        else:
            check_record(values)

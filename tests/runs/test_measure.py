"""Parameters, and how latency is taken."""

import pytest
import torch
from torch import nn

from compresskd import measure
from compresskd.quant.prepare import QuantSpec, prepare


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
        times = measure.latency(models, torch.zeros(1, 3), batch_sizes=(1, 8), seconds=0.0, min_rounds=3)
        assert {name: list(batches) for name, batches in times.items()} == {
            "a": ["batch_1", "batch_8"],
            "b": ["batch_1", "batch_8"],
        }
        assert all(value > 0 for batches in times.values() for value in batches.values())
        warm, turns = ["a", "a", "b", "b"], ["a", "b"] * 3
        assert [name for name, size in log if size == 1] == warm + turns
        assert [name for name, size in log if size == 8] == warm + turns
        assert models["a"].training

    def test_median_in_milliseconds(self, monkeypatch):
        seconds = iter([0.001, 0.5, 0.002, 0.003, 0.004])
        monkeypatch.setattr(measure, "_timed", lambda model, batch: next(seconds))
        times = measure.latency(
            {"a": nn.Identity()}, torch.zeros(1, 3), batch_sizes=(4,), seconds=0.0, min_rounds=5
        )
        assert times == {"a": {"batch_4": 3.0}}

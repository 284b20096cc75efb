"""Parameters, multiply-accumulates against counts by hand, and how latency is taken."""

import pytest
import torch
from torch import nn

from compresskd import measure, tt
from compresskd.models.build import build


class TestParameters:
    def test_tied_count_once(self):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        assert measure.num_parameters(nn.Sequential(first, second)) == 16 + 4 + 4

    def test_buffers_do_not_count(self):
        assert measure.num_parameters(nn.BatchNorm2d(8)) == 16


class TestMacs:
    @pytest.mark.parametrize(
        ("layer", "shape", "expected"),
        [
            (nn.Linear(10, 5), (10,), 50),
            (nn.Linear(10, 5, bias=False), (10,), 50),
            (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 6), 36 * 8 * 3 * 9),
            (nn.Conv2d(3, 8, 3, stride=2), (3, 7, 7), 9 * 8 * 3 * 9),
            (nn.Conv2d(8, 8, 3, groups=4, padding=1), (8, 4, 4), 16 * 8 * 2 * 9),
            (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.MaxPool2d(2)), (3, 4, 4), 0),
        ],
    )
    def test_known_layers(self, layer, shape, expected):
        assert measure.macs(layer, torch.zeros(1, *shape)) == expected

    def test_lenet_300_100(self):
        kwargs = {"hidden": [300, 100], "num_classes": 10, "input_shape": [1, 28, 28]}
        model = build("compresskd.models.mlp.MLP", kwargs, seed=0)
        assert measure.macs(model, torch.zeros(1, 1, 28, 28)) == 784 * 300 + 300 * 100 + 100 * 10

    def test_two_cores_cost_their_parameters(self):
        layer = tt.factorize(nn.Linear(1024, 1024), rank=4, modes=((1024, 1), (1, 1024)))
        assert measure.macs(layer, torch.zeros(1, 1024)) == 2 * 1024 * 4

    def test_mode_and_random_numbers_are_left_alone(self):
        model = nn.Sequential(nn.Dropout(), nn.Linear(4, 2)).train()
        model[0].eval()
        before = torch.get_rng_state()
        measure.macs(model, torch.zeros(1, 4))
        assert (model.training, model[0].training, model[1].training) == (True, False, True)
        assert torch.equal(torch.get_rng_state(), before)


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

"""The bench verb on a layer and on a run; what it refuses."""

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.models.build import build
from compresskd.reports import bench
from compresskd.reports.bench import BenchError


def test_a_layer_is_timed_against_dense(capsys, monkeypatch):
    monkeypatch.setattr(bench, "_SECONDS_PER_CASE", 0.01)
    assert bench.main(["--layer", "64x128", "--rank", "4", "--batch", "1,32", "--plans", "1"]) == 0
    out = capsys.readouterr().out
    assert "64x128" in out
    assert out.count("picked:") == 2


@pytest.mark.parametrize("arguments", [["--layer", "64"], []])
def test_without_a_layer_or_run_it_says_what_to_write(arguments):
    with pytest.raises(BenchError, match="--layer MxN such as --layer 4096x4096"):
        bench.main(arguments)


def test_a_rank_at_which_nothing_gets_smaller_is_refused():
    with pytest.raises(BenchError, match="break-even"):
        bench.main(["--layer", "8x8", "--rank", "64"])


def test_inputs_of_layers_are_what_the_model_feeds_them():
    options = {"hidden": [32], "num_classes": 3, "input_shape": [16]}
    model = build("compresskd.models.mlp.MLP", options, seed=0)
    model.fc1 = tt.factorize(model.fc1, rank=2)
    x = torch.randn(5, 16)
    seen = bench._inputs(model, ["fc1", "fc2"], x)
    torch.testing.assert_close(seen["fc1"], x)
    torch.testing.assert_close(seen["fc2"], torch.relu(model.fc1(x)).detach())
    assert not model.fc1._forward_pre_hooks


@pytest.mark.parametrize("layer", [nn.Linear(64, 48), nn.Conv2d(16, 24, 3, stride=2, padding=1)])
def test_the_dense_contender_computes_the_same(layer):
    factorized = tt.factorize(layer, rank=4)
    shape = (3, 64) if isinstance(layer, nn.Linear) else (3, 16, 9, 9)
    x = torch.randn(shape)
    case = bench._case("layer", factorized, x)
    torch.testing.assert_close(case.dense(), factorized(x), rtol=1e-4, atol=1e-5)

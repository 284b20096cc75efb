"""Size by any wish, on a trained model: what is realised, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

import compresskd
from compresskd import artifact, tt
from compresskd.compression.compression import NothingCompressed
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.size import Size
from compresskd.layers import surgery
from compresskd.measure import macs
from compresskd.models.build import build
from compresskd.stages import Compression

TEACHER = ("strategy=compress", "teacher.hidden=[256,256]")


def final(record):
    return record.stage(record.final)


@pytest.mark.slow
def test_rank_caps_every_bond(run_strategy):
    record, directory = run_strategy(*TEACHER, "rank=5")
    layers = final(record)["layers"]
    assert set(layers) == {"fc1", "fc2", "fc3"}
    assert all(max(layer["ranks"]) <= 5 for layer in layers.values())
    reloaded = artifact.load(directory / final(record)["checkpoint"])
    for name, described in surgery.structure(reloaded).items():
        assert list(described["ranks"]) == layers[name]["ranks"]


def test_ranks_by_pattern_and_what_stays_dense(run_strategy):
    record, _ = run_strategy(
        *TEACHER, "rank=4", "+compress.ranks.fc2=12", "compress.num_cores=2", "compress.exclude=[fc3]"
    )
    layers = final(record)["layers"]
    assert layers["fc1"]["ranks"] == [4]
    assert layers["fc2"]["ranks"] == [12]
    assert "compress.exclude" in final(record)["skipped"]["fc3"]


def test_modes_by_pattern_take_the_place_of_the_search(run_strategy):
    record, _ = run_strategy(
        *TEACHER,
        "rank=4",
        "+compress.modes.fc2=[[4,8,8],[8,8,4]]",
        "+compress.ranks.fc2=[3,5]",
        "data=digits",
    )
    layer = final(record)["layers"]["fc2"]
    assert (layer["input_dims"], layer["output_dims"]) == ([4, 8, 8], [8, 8, 4])
    assert layer["ranks"] == [3, 5]
    assert len(final(record)["layers"]["fc1"]["ranks"]) in (1, 2, 3)


def test_modes_of_a_convolution_are_its_stages():
    model = nn.Sequential(nn.Conv2d(3, 16, 5))
    how = Compression(rank=4, ranks={"0": [2, 3]}, modes={"0": [[1, 1], [5, 1], [1, 5]]})
    plan = plan_layers(
        dict(model.named_children()),
        how,
        Method("tensor_train", None, {}, how.modes),
        model,
        lambda _: 0.0,
    )
    layer = plan["0"](model[0])
    assert layer.stages == ((1, 1), (5, 1), (1, 5))
    assert layer.ranks == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("of", ["parameters", "bytes"])
def test_budget_is_met_within_two_percent(run_strategy, budget, of):
    record, _ = run_strategy(*TEACHER, f"compress.budget={budget}", f"compress.budget_of={of}")
    key = {"parameters": "num_parameters", "bytes": "folder_bytes"}[of]
    realised = final(record)["size"][key] / record.teacher["size"][key]
    assert 0.98 * budget <= realised <= budget


@pytest.mark.parametrize(("of", "least"), [("parameters", 0.97), ("bytes", 0.9)])
def test_a_budget_over_included_layers_counts_their_weights_alone(of, least):
    """A quarter of the two included layers, though the model is mostly a layer that is left out."""
    sizes = {"input_shape": [32], "hidden": [256, 64], "num_classes": 32}
    model = build("compresskd.models.mlp.MLP", sizes, seed=0)
    options = {
        "exclude": ["fc1"],
        "budget": 0.25,
        "budget_of": of,
        "budget_over": "included",
        "method": "svd",
    }
    small = compresskd.compress(model, torch.randn(8, 32), **options)
    kept = sum(p.numel() for name in ("fc2", "fc3") for p in small.get_submodule(name).parameters())
    whole = 256 * 64 + 64 * 32
    biases = 64 + 32
    assert least * 0.25 * whole <= kept - biases <= 0.25 * whole
    with pytest.raises(ValueError, match=r"budget: got 0\.25, expected >= 0\.\d+ of 26,976 parameters"):
        compresskd.compress(model, torch.randn(8, 32), **{**options, "budget_over": "all"})


class Convolutions(nn.Module):
    """A table, a convolution that runs at many places, and a linear layer that runs at one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.line = nn.Conv1d(32, 64, 3)
        self.fc = nn.Linear(64, 256)

    def forward(self, x):
        return self.fc(self.line(self.conv(x).relu().mean(2)).mean(-1))


@pytest.mark.parametrize("over", ["all", "included"])
@pytest.mark.parametrize("method", ["tensor_train", "svd", "interpolative"])
def test_a_budget_of_macs_is_spent_where_layers_run_often(method, over):
    torch.manual_seed(0)
    model, x = Convolutions(), torch.randn(16, 16, 8, 8)
    whole = macs.count(model, x[:1]).number
    options = {"method": method, "budget": 0.5, "budget_of": "macs", "budget_over": over, "exclude": ["line"]}
    small = compresskd.compress(model, x, **options)
    taken, line = macs.count(small, x[:1]).number, 32 * 3 * 64 * 6
    if over == "included":
        assert 0.4 * (whole - line) < taken - line <= 0.5 * (whole - line)
    else:
        assert 0.4 * whole < taken <= 0.5 * whole
    few = compresskd.compress(model, x, **{**options, "budget_of": "parameters"})
    assert sum(p.numel() for p in small.fc.parameters()) > sum(p.numel() for p in few.fc.parameters())
    with pytest.raises(
        ValueError, match=r"budget: got 0\.001, expected >= 0\.\d+ of [\d,]+ multiply-accumulates"
    ):
        compresskd.compress(model, x, **{**options, "budget": 0.001})


def test_tables_and_tied_weights_stay_dense_where_what_is_computed_counts():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.head = (
                nn.Embedding(64, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 64, bias=False),
            )
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.mix(self.table(x)).mean(1))

    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 64, (8, 5))
    small = compresskd.compress(model, ids, method="svd", budget=0.8, budget_of="macs")
    assert isinstance(small.table, nn.Embedding)
    assert small.head.weight is small.table.weight
    assert not isinstance(small.mix, nn.Linear)


@pytest.mark.slow
def test_a_budget_of_time_makes_the_slow_layer_small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 8)
    )
    small = compresskd.compress(model, torch.randn(64, 64), method="svd", budget=0.75, budget_of="latency")
    assert small[2].ranks[0] < 1024


def test_one_ratio_gives_every_layer_the_same_share():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 48))
    options = {"method": "interpolative", "budget": 0.5, "allocation": "ratio", "exclude": ["4"]}
    whole = sum(p.numel() for p in model.parameters())
    small = compresskd.compress(model, torch.randn(8, 64), **options)
    taken = [small[k].num_parameters - small[k].out_features for k in (0, 2)]
    shares = [count / model[k].weight.numel() for count, k in zip(taken, (0, 2), strict=True)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert 0.47 * whole < sum(p.numel() for p in small.parameters()) <= 0.5 * whole


def test_scales_of_inputs_make_the_small_ones_count_less():
    torch.manual_seed(0)
    model, scales = nn.Sequential(nn.Linear(32, 32)), torch.logspace(-2, 1, 32)
    x, errors = torch.randn(512, 32) * scales, {}
    for whitening in ("none", "input_scale", "input"):
        small = compresskd.compress(model, x, rank=8, method="svd", whitening=whitening)
        errors[whitening] = float((small(x) - model(x)).detach().norm())
    assert errors["input"] < errors["input_scale"] < 0.5 * errors["none"]


def test_too_few_samples_are_refused_where_nothing_is_damped():
    model, few = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), torch.randn(8, 32)
    options = {"rank": 4, "whitening": "input", "num_calibration": 8}
    with pytest.raises(ValueError, match=r"num_calibration: got 8, expected >= 32 samples: .*32 inputs of 0"):
        compresskd.compress(model, few, damping=[0.0, 0.0], **options)
    assert isinstance(compresskd.compress(model, few, **options)[0], tt.TTLinear)


def test_two_sided_errors_leave_out_what_the_predictions_do_not_read():
    """Half of the hidden features reach no output, and what all logits have in common makes no probability."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
    model[1].weight.data[:, 16:] = 0.0
    x = torch.randn(512, 32)
    options = {"method": "svd", "rank": 12, "include": ["0"], "num_calibration": 512}
    exact, errors = model(x).log_softmax(1).detach(), {}
    for whitening in ("input", "two_sided"):
        small = compresskd.compress(model, x, whitening=whitening, **options)
        errors[whitening] = float((small(x).log_softmax(1).detach() - exact).norm() / exact.norm())
    assert errors["two_sided"] < 0.2 * errors["input"]


def test_tolerance_bounds_the_error_of_each_layer(run_strategy):
    record, directory = run_strategy(*TEACHER, "compress.tolerance=0.2", "compress.whitening=none")
    compressed = artifact.load(directory / final(record)["checkpoint"])
    teacher = artifact.load(Path(record.teacher["directory"]) / "checkpoints" / "train")
    for name in final(record)["layers"]:
        weight = teacher.get_submodule(name).weight
        error = (compressed.get_submodule(name).to_dense() - weight).norm() / weight.norm()
        assert 0.1 < error <= 0.2 + 1e-5, name


@pytest.mark.slow
def test_energy_is_the_same_wish_as_tolerance(run_strategy):
    by_energy, _ = run_strategy(*TEACHER, "compress.energy=0.96", "compress.whitening=none")
    by_tolerance, _ = run_strategy(*TEACHER, "compress.tolerance=0.2", "compress.whitening=none")
    assert final(by_energy)["layers"] == final(by_tolerance)["layers"]


@pytest.mark.slow
def test_max_drop_is_kept_on_validation_and_binding(run_strategy):
    generous, _ = run_strategy(*TEACHER, "compress.max_drop=10")
    strict, _ = run_strategy(*TEACHER, "compress.max_drop=1")
    for record, allowed in ((generous, 10), (strict, 1)):
        teacher = record.teacher["metrics"]["validation_accuracy"]
        assert 100 * (teacher - final(record)["metrics"]["validation_accuracy"]) <= allowed + 1e-9
    assert final(generous)["size"]["num_parameters"] < final(strict)["size"]["num_parameters"]


@pytest.mark.slow
def test_whitening_by_inputs_loses_less_than_weight_error_alone(run_strategy):
    aware, _ = run_strategy(*TEACHER, "compress.budget=0.08")
    plain, _ = run_strategy(*TEACHER, "compress.budget=0.08", "compress.whitening=none")
    assert final(aware)["metrics"]["validation_loss"] < final(plain)["metrics"]["validation_loss"]


def scaled(*shape):
    """Inputs whose features, or channels, fall in size."""
    x = torch.randn(*shape)
    return x * torch.logspace(0, -1.5, shape[1]).view(1, -1, *[1] * (len(shape) - 2))


def often(num_texts, length, num_rows):
    """Ids of which the first are asked for the most."""
    return torch.multinomial(1 / torch.arange(1.0, num_rows + 1), num_texts * length, True).view(
        num_texts, length
    )


FACTORIZED = {
    "linear": (lambda: nn.Linear(32, 24), lambda: scaled(256, 32), {}),
    "interpolative": (lambda: nn.Linear(32, 24), lambda: scaled(256, 32), {"method": "interpolative"}),
    "convolution": (lambda: nn.Conv2d(12, 24, 3), lambda: scaled(64, 12, 6, 6), {}),
    "one-dimensional": (lambda: nn.Conv1d(12, 24, 3), lambda: scaled(64, 12, 9), {}),
    "table": (lambda: nn.Embedding(60, 24), lambda: often(64, 8, 60), {"method": "svd"}),
    "groups of rows": (
        lambda: nn.Embedding(60, 24),
        lambda: often(64, 8, 60),
        {"row_groups": 2, "whitening": "input"},
    ),
}


@pytest.mark.parametrize("kind", FACTORIZED)
def test_lower_ranks_of_factorized_layers_count_by_what_they_are_given(kind):
    torch.manual_seed(0)
    make, give, options = FACTORIZED[kind]
    model, x = nn.Sequential(make()), give()
    large = compresskd.compress(model, x, **{"rank": 9, "whitening": "none", **options})
    aware, blind = (compresskd.compress(large, x, rank=4, whitening=by) for by in ("input", "none"))
    assert aware[0].ranks == blind[0].ranks
    assert max(aware[0].ranks) <= 4 < max(large[0].ranks)
    with torch.no_grad():
        errors = [float((small(x) - large(x)).norm()) for small in (aware, blind)]
    assert errors[0] < 0.95 * errors[1]


def test_a_tolerance_of_factorized_layers_counts_their_weights():
    torch.manual_seed(0)
    x = scaled(256, 32)
    large = compresskd.compress(nn.Sequential(nn.Linear(32, 24)), x, rank=9, whitening="none")
    small = compresskd.compress(large, x, tolerance=0.4, whitening="input")
    exact = large[0].to_dense()
    assert small[0].ranks < large[0].ranks
    assert (small[0].to_dense() - exact).norm() <= 0.4 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_other_methods_behind_the_same_switch(run_strategy, method):
    record, _ = run_strategy(*TEACHER, f"compress={method}", "rank=8")
    assert (
        final(record)["layers"]["fc2"]["kind"]
        == {"svd": "TTLinear", "tucker": "TuckerLinear", "cp": "CPLinear"}[method]
    )
    assert final(record)["size"]["num_parameters"] < record.teacher["size"]["num_parameters"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank: got 0, expected >= 1"),
        ({"ranks": {"fc1": 0}}, r"ranks\.fc1: got 0, expected >= 1 or a list: \[a, b\]"),
        ({"tolerance": 0.1, "budget": 0.2}, "one target for the size"),
        ({"tolerance": 1.5}, r"tolerance: got 1\.5, expected < 1"),
        ({"energy": 0.0}, r"energy: got 0\.0, expected > 0"),
        ({"budget": 2}, "budget: got 2, expected < 1"),
        ({"budget": 0.5, "budget_of": "watts"}, "budget_of: got 'watts', expected parameters, bytes"),
        ({"max_drop": -1}, "max_drop: got -1, expected >= 0"),
        ({"budget_of": "macs"}, "budget_of: got 'macs', expected parameters without compress.budget"),
        ({"budget": 0.5, "budget_over": "some"}, "budget_over: got 'some', expected all, included"),
        ({"budget_over": "included"}, "budget_over: got 'included', expected all without compress.budget"),
        ({"method": "magic"}, "method: got 'magic', expected tensor_train, svd, interpolative, tucker, cp"),
        ({"num_cores": 1}, "num_cores: got 1, expected >= 2"),
        ({"num_cores": 3, "method": "svd"}, "num_cores: got 3, expected null with method=svd"),
        ({"whitening": "input", "method": "cp"}, "whitening: got 'input', expected none with method=cp"),
        ({"whitening": "both"}, "whitening: got 'both', expected none, input_scale, input, two_sided"),
        ({"allocation": "ratio", "max_drop": 1.0}, "allocation: got 'ratio', expected error with max_drop"),
        (
            {"allocation": "ratio", "budget": 0.5, "budget_of": "bytes"},
            "budget_of: got 'bytes', expected parameters with allocation=ratio",
        ),
        ({"compensation": "sequential"}, "compensation: got 'sequential', expected none with whitening=none"),
        ({"damping": [0.1, 0.1]}, r"damping: got \[0\.1, 0\.1\], expected null with whitening=none"),
        ({"damping": [0.1], "whitening": "input"}, r"damping: got \[0\.1\], expected two"),
        ({"damping": [0.1, -1.0], "whitening": "input"}, r"damping\[1\]: got -1\.0, expected >= 0"),
        ({"budget": 0.5, "method": "tucker"}, r"budget: got 0\.5, expected null with method=tucker"),
        ({"modes": {"fc1": [[4], [4]]}, "budget": 0.5}, r"modes: got \{'fc1': \[\[4\], \[4\]\]\}, expected"),
        (
            {"modes": {"fc1": [[4], [4]]}, "method": "svd"},
            r"modes: got \{'fc1': \[\[4\], \[4\]\]\}, expected",
        ),
        ({"ranks": {"fc1": [4, 4]}}, r"ranks\.fc1: got \[4, 4\], expected"),
        (
            {"ranks": {"fc1": [4, 0]}, "modes": {"fc1": [[4], [4]]}},
            r"ranks\.fc1\[1\]: got 0, expected >= 1",
        ),
        ({"include": []}, r"include: got \[\], expected"),
        ({"num_calibration": 0}, "num_calibration: got 0, expected >= 1"),
    ],
)
def test_impossible_wishes_name_their_key(options, words):
    with pytest.raises(ValueError, match=words):
        Compression(**{"rank": 4, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ["layer9"]}, "include: got 'layer9', expected"),
        ({"exclude": ["x*"]}, r"exclude: got 'x\*', expected"),
        ({"ranks": {"y": 2}}, "ranks: got 'y', expected"),
        ({"modes": {"y": [[8], [8]]}}, "modes: got 'y', expected"),
    ],
)
def test_patterns_that_fit_nothing(options, words):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=words):
        Compression(**{"rank": 2, **options}).check(model, torch.zeros(2, 8))


def test_a_model_in_which_nothing_gets_smaller_fails_loudly():
    with pytest.raises(NothingCompressed, match=r"break-even: \d+ parameters at rank \d, 16 dense"):
        Compression(rank=64).check(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4))


def test_a_budget_below_the_least_says_what_is_possible():
    layers = {"0": nn.Linear(32, 32)}
    model = nn.Sequential(layers["0"])
    with pytest.raises(ValueError, match=r"budget: got 0\.001, expected"):
        plan_layers(layers, Size(4, budget=0.001), Method("tensor_train", None, {}), model, lambda _: 0.0)


def test_rounding_goes_on_from_factors():
    torch.manual_seed(0)
    layer = tt.factorize(nn.Linear(64, 64), rank=16, method="svd")
    rounded = Size(4).rounded("fc", layer)
    assert rounded.ranks == (4,)
    assert Size(4, ranks={"fc": [3]}).rounded("fc", layer).ranks == (3,)
    with pytest.raises(ValueError, match=r"ranks: got \[3, 3\], expected"):
        Size(4, ranks={"fc": [3, 3]}).rounded("fc", layer)
    best = torch.linalg.svdvals(layer.to_dense().double())[4:].norm()
    torch.testing.assert_close(
        (layer.to_dense() - rounded.to_dense()).double().norm(), best, rtol=1e-3, atol=1e-6
    )

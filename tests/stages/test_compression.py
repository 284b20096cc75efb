"""Size by any wish, on a trained model: what is realised, and what is refused."""

from pathlib import Path

import pytest
import torch
from refusals import says
from torch import nn

from compresskd import artifact, tt
from compresskd.compression.compression import NothingCompressed
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.size import Size
from compresskd.layers import surgery
from compresskd.stages import Compression

TEACHER = ("strategy=compress", "teacher.hidden=[256,256]")


def final(record):
    return record.stage(record.final)


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


def test_tolerance_bounds_the_error_of_each_layer(run_strategy):
    record, directory = run_strategy(*TEACHER, "compress.tolerance=0.2", "compress.data_aware=false")
    compressed = artifact.load(directory / final(record)["checkpoint"])
    teacher = artifact.load(Path(record.teacher["directory"]) / "checkpoints" / "train")
    for name in final(record)["layers"]:
        weight = teacher.get_submodule(name).weight
        error = (compressed.get_submodule(name).to_dense() - weight).norm() / weight.norm()
        assert 0.1 < error <= 0.2 + 1e-5, name


@pytest.mark.slow
def test_energy_is_the_same_wish_as_tolerance(run_strategy):
    by_energy, _ = run_strategy(*TEACHER, "compress.energy=0.96", "compress.data_aware=false")
    by_tolerance, _ = run_strategy(*TEACHER, "compress.tolerance=0.2", "compress.data_aware=false")
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
def test_data_aware_loses_less_than_weight_error_alone(run_strategy):
    aware, _ = run_strategy(*TEACHER, "compress.budget=0.08")
    plain, _ = run_strategy(*TEACHER, "compress.budget=0.08", "compress.data_aware=false")
    assert final(aware)["metrics"]["validation_loss"] < final(plain)["metrics"]["validation_loss"]


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
        ({"rank": 0}, says("rank", "0")),
        ({"ranks": {"fc1": 0}}, says("ranks", "0", "fc1")),
        ({"tolerance": 0.1, "budget": 0.2}, says("tolerance", "compress.budget", "one target")),
        ({"tolerance": 1.5}, says("tolerance", "1.5")),
        ({"energy": 0.0}, says("energy", "0.0")),
        ({"budget": 2}, says("budget", "2")),
        ({"budget": 0.5, "budget_of": "watts"}, says("budget_of", "watts")),
        ({"max_drop": -1}, says("max_drop", "-1")),
        ({"method": "magic"}, says("method", "magic")),
        ({"num_cores": 1}, says("num_cores", "1")),
        ({"num_cores": 3, "method": "svd"}, says("num_cores", "3", "method", "svd")),
        ({"data_aware": True, "method": "cp"}, says("data_aware", "true", "method", "cp")),
        ({"budget": 0.5, "method": "tucker"}, says("budget", "method", "tucker")),
        ({"modes": {"fc1": [[4], [4]]}, "budget": 0.5}, says("modes", "method")),
        ({"modes": {"fc1": [[4], [4]]}, "method": "svd"}, says("modes", "method")),
        ({"ranks": {"fc1": [4, 4]}}, says("ranks", "fc1", "list")),
        (
            {"ranks": {"fc1": [4, 0]}, "modes": {"fc1": [[4], [4]]}},
            says("ranks", "[4, 0]", "fc1"),
        ),
        ({"include": []}, says("include", "list")),
        ({"num_calibration": 0}, says("num_calibration", "0")),
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
    with pytest.raises(ValueError, match=says("budget", "0.001", "1,056")):
        plan_layers(layers, Size(4, budget=0.001), Method("tensor_train", None, {}), model, lambda _: 0.0)


def test_rounding_goes_on_from_factors():
    torch.manual_seed(0)
    layer = tt.factorize(nn.Linear(64, 64), rank=16, method="svd")
    rounded = Size(4).rounded("fc", layer)
    assert rounded.ranks == (4,)
    assert Size(4, ranks={"fc": [3]}).rounded("fc", layer).ranks == (3,)
    with pytest.raises(ValueError, match=says("ranks", "[3, 3]", "fc", "1")):
        Size(4, ranks={"fc": [3, 3]}).rounded("fc", layer)
    best = torch.linalg.svdvals(layer.to_dense().double())[4:].norm()
    torch.testing.assert_close(
        (layer.to_dense() - rounded.to_dense()).double().norm(), best, rtol=1e-3, atol=1e-6
    )

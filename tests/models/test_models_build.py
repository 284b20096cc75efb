import copy
import json
import sys

import pytest
import torch
from refusals import says
from torch import nn

from compresskd.models.build import build, spec_of
from compresskd.models.mlp import MLP

MLP_TARGET = "compresskd.models.mlp.MLP"
OPTIONS = {"hidden": [4], "num_classes": 3, "input_shape": [5]}


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write the given source as a module of the user's own; forget it afterwards."""

    def write(source, name="models_of_a_user"):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    sys.modules.pop("models_of_a_user", None)


def test_spec_rebuilds_the_same_module_after_json():
    module = build(MLP_TARGET, {**OPTIONS, "hidden": (4, 6)}, seed=0)
    spec = json.loads(json.dumps(spec_of(module)))
    assert spec == {"target": MLP_TARGET, "kwargs": {**OPTIONS, "hidden": [4, 6]}}
    again = build(spec["target"], spec["kwargs"], seed=0)
    assert isinstance(again, MLP)
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_spec_is_a_copy_that_deepcopy_keeps_and_state_dict_does_not_contain():
    options = copy.deepcopy(OPTIONS)
    module = build(MLP_TARGET, options, seed=0)
    options["hidden"].append(7)
    assert spec_of(copy.deepcopy(module))["kwargs"]["hidden"] == [4]
    assert set(module.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_parameters_depend_on_the_seed_alone_and_the_global_generator_is_untouched():
    torch.manual_seed(11)
    expected_draw = torch.rand(3)
    torch.manual_seed(11)
    first = build(MLP_TARGET, OPTIONS, seed=5)
    torch.testing.assert_close(torch.rand(3), expected_draw, rtol=0, atol=0)
    torch.testing.assert_close(
        build(MLP_TARGET, OPTIONS, seed=5).state_dict(), first.state_dict(), rtol=0, atol=0
    )
    assert not torch.equal(build(MLP_TARGET, OPTIONS, seed=6).fc1.weight, first.fc1.weight)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        module = build(MLP_TARGET, OPTIONS, seed=0)
    assert all(p.is_meta for p in module.parameters())


def test_user_code_gets_only_what_the_kwargs_hold(user_module):
    name = user_module(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, size=3):\n"
        "        super().__init__(size, 2)\n"
        "def make(**options):\n"
        "    return nn.Linear(options['a'], 2)\n"
    )
    assert build(f"{name}.Net", {}, seed=0).in_features == 3
    assert build(f"{name}.Net", {"size": 7}, seed=0).in_features == 7
    assert build(f"{name}.make", {"a": 4}, seed=0).in_features == 4
    with pytest.raises(ValueError, match=says("num_classes", "unknown option", "size")):
        build(f"{name}.Net", {"num_classes": 2}, seed=0)


def test_nested_targets_are_constructed_and_stay_plain_in_the_spec():
    layers = [
        {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 3},
        {"_target_": "torch.nn.ReLU"},
    ]
    module = build("torch.nn.Sequential", {"_args_": layers}, seed=0)
    assert [type(layer) for layer in module] == [nn.Linear, nn.ReLU]
    assert json.loads(json.dumps(spec_of(module)))["kwargs"] == {"_args_": layers}


def test_partial_makes_a_factory_for_the_model_that_wants_one(user_module):
    name = user_module(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, norm):\n"
        "        super().__init__(norm(3), norm(4))\n"
    )
    norm = {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 0.5}
    module = build(f"{name}.Net", {"norm": norm}, seed=0)
    assert [(layer.normalized_shape, layer.eps) for layer in module] == [((3,), 0.5), ((4,), 0.5)]
    with pytest.raises(ValueError, match=r"to construct a .*Module, got partial"):
        build("torch.nn.LayerNorm", {"_partial_": True}, seed=0)


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("MLP", {}, "expected a dotted path such as compresskd.models.mlp.MLP, got 'MLP'"),
        ("compresskd.models.mlp MLP", {}, "expected a dotted path"),
        (None, {}, "expected a dotted path .* got 'None'"),
        ("compreskd.models.mlp.MLP", {}, "no module named 'compreskd' .*did you mean compresskd"),
        ("compresskd.models.mpl.MLP", {}, "compresskd.models has no 'mpl'; did you mean mlp"),
        ("compresskd.models.mlp.Mlp", {}, "compresskd.models.mlp has no 'Mlp'; did you mean MLP"),
        ("compresskd.models.mlp", {}, "expected a class or function, found module; did you mean MLP"),
        ("torch.pi", {}, "expected a class or function, found float"),
        ("torch.pi.x", {}, "torch.pi has no 'x'"),
        (
            "builtins.dict",
            {},
            "expected a subclass of torch.nn.Module, or a function .*, got the class builtins.dict",
        ),
        (
            MLP_TARGET,
            {"hiden": [3]},
            says("hiden", "unknown option", "hidden?"),
        ),
        (MLP_TARGET, {"num_classes": 3}, says("input_shape", "is missing", "MLP")),
        (MLP_TARGET, {"hidden": nn.ReLU()}, "MLP: hidden: expected a plain value .* got ReLU"),
        (MLP_TARGET, {"hidden": [1, {2: 3}]}, says("hidden[1]", "dict")),
    ],
)
def test_faults_are_told_with_the_nearest_valid_name(target, options, said):
    with pytest.raises(ValueError, match=said):
        build(target, options, seed=0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import a_package_that_is_missing",
            "importing .* failed: No module named 'a_package_that_is_missing'",
        ),
        ("def broken(:", "importing .* failed: SyntaxError"),
        ("1 / 0", "importing .* failed: ZeroDivisionError"),
    ],
)
def test_a_user_module_that_fails_to_import_is_told_apart_from_a_missing_one(user_module, source, said):
    name = user_module(source)
    with pytest.raises(ValueError, match=said):
        build(f"{name}.Net", {}, seed=0)


def test_a_module_with_a_spec_of_its_own_is_refused(user_module):
    name = user_module("from torch import nn\nclass Net(nn.Module):\n    spec = 'mine'\n")
    with pytest.raises(ValueError, match="has an attribute `spec` of its own"):
        build(f"{name}.Net", {}, seed=0)


@pytest.mark.parametrize("spec", [None, "text", {"target": "x"}])
def test_spec_of_a_module_built_otherwise_is_an_error(spec):
    module = nn.Linear(2, 2)
    if spec is not None:
        module.spec = spec
    with pytest.raises(ValueError, match="Linear does not say how it was built: construct it by"):
        spec_of(module)

"""Replacing modules by name, and the structure by which that is done again."""

import pytest
import torch
from torch import nn

from compresskd import tt
from compresskd.layers import surgery
from compresskd.models.build import build


def mlp():
    kwargs = {"hidden": [32, 32], "num_classes": 4, "input_shape": [1, 8, 8]}
    return build("compresskd.models.mlp.MLP", kwargs, seed=0)


def nested():
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))


def test_outermost_first_and_not_inside_what_was_replaced():
    asked = []

    def replacement(name, module):
        asked.append(name)
        return nn.Identity() if name == "0" else None

    model = nested()
    assert list(surgery.replace(model, replacement)) == ["0"]
    assert asked == ["0", "1"]
    assert isinstance(model[0], nn.Identity)


def test_none_goes_on_inside():
    model = nested()
    replaced = surgery.replace(model, lambda name, m: nn.Identity() if isinstance(m, nn.Linear) else None)
    assert list(replaced) == ["0.0", "1"]
    assert [type(m).__name__ for m in (model[0][0], model[0][1], model[1])] == [
        "Identity",
        "ReLU",
        "Identity",
    ]


@pytest.mark.parametrize(
    ("name", "include", "exclude", "expected"),
    [
        ("layer1.0.conv1", ["*"], [], True),
        ("layer1.0.conv1", ["layer1.*"], ["*.conv1"], False),
        ("layer1.0.conv1", ["layer2.*"], [], False),
        ("fc1", ["fc?"], ["FC1"], True),
        ("fc1", [], [], False),
    ],
)
def test_matches(name, include, exclude, expected):
    assert surgery.matches(name, include, exclude) is expected


class TestStructure:
    def test_ordinary_network_has_none(self):
        assert surgery.structure(mlp()) == {}

    def test_applied_to_a_fresh_network_gives_the_same_shapes(self):
        model = mlp()

        def factorize(name, module):
            new = tt.factorize(module, rank=3) if isinstance(module, nn.Linear) else None
            return None if isinstance(new, tt.Skipped) else new

        assert "fc1" in surgery.replace(model, factorize)
        fresh = mlp().eval()
        surgery.apply_structure(fresh, surgery.structure(model))
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        assert {k: v.shape for k, v in fresh.state_dict().items()} == shapes
        assert surgery.structure(fresh) == surgery.structure(model)
        assert not any(module.training for module in fresh.modules())
        fresh.load_state_dict(model.state_dict())
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(fresh(x), model.eval()(x))

    def test_name_that_the_architecture_lacks(self):
        with pytest.raises(ValueError, match=r"has no module 'fc7\.inner'"):
            surgery.apply_structure(mlp(), {"fc7.inner": {"class": "compresskd.tt.TTLinear"}})

    def test_class_without_structure(self):
        with pytest.raises(
            ValueError, match=r"'compresskd\.models\.mlp\.MLP' cannot be built from a structure"
        ):
            surgery.apply_structure(mlp(), {"fc1": {"class": "compresskd.models.mlp.MLP"}})

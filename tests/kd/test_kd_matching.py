"""Which features are compared with which, and through which projectors."""

import copy

import pytest
import torch
from kd_nets import K, Mlp, Net, Tokens, bind, step
from refusals import says
from torch import nn

from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving

# Projectors


def test_no_projector_where_shapes_are_equal(inputs):
    bound = bind(Hint(match="same_name", include=["*"]), Net(), Net(), inputs)
    assert list(bound.parameters()) == []
    assert bound.state_dict() == {}


def test_projectors_where_channels_differ_and_they_learn(inputs, targets):
    student, teacher = Net(width=4), Net(width=6)
    bound = bind(Hint(match="same_name"), student, teacher, inputs)
    shapes = [tuple(p.shape) for p in bound.parameters()]
    assert shapes == [(6, 4, 1, 1), (6,)] * 3
    total, _ = step(bound, student, teacher, inputs, targets)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bound.parameters())
    assert student.layer2[0].conv2.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_projectors_are_linear_for_vectors_and_tokens(inputs, targets):
    bound = bind(Hint(match="same_name"), Mlp([16]), Mlp([32]), inputs)
    assert [tuple(p.shape) for p in bound.parameters()] == [(32, 16), (32,)]
    student, teacher = Tokens(width=4), Tokens(width=6)
    bound = bind(Hint(pairs={"blocks.1": "blocks.0"}), student, teacher, inputs)
    assert [tuple(p.shape) for p in bound.parameters()] == [(6, 4), (6,)]
    assert step(bound, student, teacher, inputs, targets)[0].isfinite()


def test_losses_on_relations_need_no_projector(inputs, targets):
    for term in (AttentionTransfer(), SimilarityPreserving(), RKD()):
        student, teacher = Net(width=4), Net(width=6)
        bound = bind(term, student, teacher, inputs)
        assert list(bound.parameters()) == []
        assert step(bound, student, teacher, inputs, targets)[1]["feature"] > 0


def test_state_dict_round_trip(inputs, targets):
    student, teacher = Net(width=4), Net(width=6)
    first = bind(Hint(match="same_name"), student, teacher, inputs)
    second = bind(Hint(match="same_name"), student, teacher, inputs)
    student.eval()
    expected = step(first, student, teacher, inputs, targets)[0].item()
    assert step(second, student, teacher, inputs, targets)[0].item() != expected
    second.load_state_dict(first.state_dict())
    assert step(second, student, teacher, inputs, targets)[0].item() == expected


def test_different_architectures_and_extents(inputs, targets):
    for student, teacher in [
        (Tokens(), Net()),
        (Mlp([16]), Net()),
        (Net(), Tokens()),
        (Net(depth=2), Mlp([16])),
    ]:
        for term in (Hint(), SimilarityPreserving(), RKD()):
            bound = bind(term, student, teacher, inputs)
            assert step(bound, student, teacher, inputs, targets)[0].isfinite()


# Matching


def pairs(term, student, teacher, inputs):
    return bind(term, student, teacher, inputs).pairs["feature"]


def test_same_name_takes_the_outermost_that_run_and_are_not_the_logits(inputs):
    found = pairs(Hint(match="same_name"), Net(), Net(depth=2), inputs)
    assert found == {"conv1": "conv1", "layer1": "layer1", "layer2": "layer2"}


def test_include_takes_every_layer_that_fits(inputs):
    found = pairs(Hint(match="same_name", include=["*"]), Net(), Net(depth=2), inputs)
    assert set(found) == {
        "conv1",
        *(f"layer{i}{part}" for i in (1, 2) for part in ("", ".0", ".0.conv1", ".0.conv2")),
    }
    found = pairs(Hint(match="same_name", include=["layer?", "*.conv2"]), Net(), Net(), inputs)
    assert list(found) == ["layer1", "layer1.0.conv2", "layer2", "layer2.0.conv2"]


def test_a_factorized_student_matches_its_parent_layer_by_layer(inputs, targets):
    class Factorized(nn.Module):  # As a tensor-train layer: cores in a list, no Linear in sight.
        def __init__(self, dense):
            super().__init__()
            u, s, v = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
            self.cores = nn.ParameterList([nn.Parameter(u * s), nn.Parameter(v)])
            self.bias = nn.Parameter(dense.bias.detach().clone())

        def forward(self, x):
            return x @ self.cores[1].T @ self.cores[0].T + self.bias

    teacher = Mlp([16, 12])
    student = copy.deepcopy(teacher)
    student.fc1, student.fc2, student.fc3 = (Factorized(m) for m in (teacher.fc1, teacher.fc2, teacher.fc3))
    bound = bind(Hint(match="same_name"), student, teacher, inputs)
    assert bound.pairs["feature"] == {"fc1": "fc1", "fc2": "fc2"}
    assert list(bound.parameters()) == []
    assert step(bound, student, teacher, inputs, targets)[1]["feature"].item() == pytest.approx(0, abs=1e-9)
    assert pairs(Hint(match="last"), student, teacher, inputs) == {"fc2": "fc2"}


def test_middle_and_last_go_by_position(inputs):
    assert pairs(Hint(match="middle"), Net(), Net(), inputs) == {"layer1": "layer1"}
    assert pairs(Hint(match="last"), Net(), Tokens(), inputs) == {"layer2": "blocks.1"}
    assert pairs(Hint(match="middle"), Mlp([16]), Tokens(), inputs) == {"fc1": "blocks.0"}


def test_what_is_the_logits_on_one_side_is_not_matched(inputs):
    # fc2 is hidden in the teacher and gives the student's logits.
    assert pairs(Hint(match="same_name"), Mlp([16]), Mlp([16, 12]), inputs) == {"fc1": "fc1"}


def test_parametrized_weights_are_not_features(inputs):
    student = Net()
    nn.utils.parametrizations.weight_norm(student.linear)
    nn.utils.parametrizations.weight_norm(student.layer2[0].conv2)
    assert pairs(Hint(match="last"), student, Net(), inputs) == {"layer2": "layer2"}
    assert "layer2.0.conv2" in pairs(Hint(match="same_name", include=["*"]), student, Net(), inputs)


def test_same_name_skips_what_a_term_cannot_compare(inputs):
    class Mixed(Net):
        def __init__(self):
            super().__init__()
            self.linear = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, K))

    student, teacher = Mixed(), Mixed()
    assert "linear.0" in pairs(Hint(match="same_name"), student, teacher, inputs)
    assert list(pairs(AttentionTransfer(), student, teacher, inputs)) == ["conv1", "layer1", "layer2"]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            Hint(pairs={"layer1.0.conv3": "conv1"}),
            says("terms.feature.pairs", "layer1.0.conv3"),
        ),
        (
            Hint(pairs={"conv1": "cnov1"}),
            says("terms.feature.pairs", "cnov1", "conv1"),
        ),
        (Hint(pairs={"unused": "conv1"}), says("terms.feature.pairs", "unused")),
        (AttentionTransfer(pairs={"linear": "linear"}), says("terms.feature.pairs", "linear")),
        (
            Hint(match="same_name", include=["nothing*"]),
            says("terms.feature.match", "same_name"),
        ),
    ],
)
def test_modules_that_do_not_fit(term, message, inputs):
    with pytest.raises(ValueError, match=message):
        bind(term, Net(), Net(), inputs)


def test_no_match_lists_what_there_is(inputs):
    with pytest.raises(ValueError, match=says("terms.feature.match", "same_name", "fc1")):
        bind(Hint(match="same_name"), Mlp([16]), Tokens(), inputs)
    with pytest.raises(ValueError, match=r"fc1: attention transfer expects"):
        bind(AttentionTransfer(), Mlp([16]), Mlp([16]), inputs)

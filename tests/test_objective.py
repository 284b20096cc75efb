import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd.kd.decoupled import DKD
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.kd.logits import CrossEntropy, LogitMSE, SoftTargets
from compresskd.kd.objective import BoundObjective, ModelOutputs, Objective

KD_CONFIGS = sorted((Path(__file__).parents[1] / "conf" / "kd").glob("*.yaml"))
B, K = 4, 3


class Block(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    """A residual network's outline: conv1, layer1.0, layer2.0, linear; `unused` never runs."""

    def __init__(self, width=4, num_classes=K, depth=1):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.layer1 = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        self.layer2 = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        self.linear = nn.Linear(width, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = F.max_pool2d(self.layer1(self.conv1(x)), 2)
        return self.linear(self.layer2(x).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """A transformer's outline: embed [B, N, C], blocks.0, blocks.1, head."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.head = nn.Linear(width, K)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(dim=1))


class Mlp(nn.Module):
    def __init__(self, hidden, num_classes=K):
        super().__init__()
        widths = [64, *hidden, num_classes]
        self.num_layers = len(widths) - 1
        for i in range(self.num_layers):
            self.add_module(f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x):
        x = x.flatten(1)
        for i in range(1, self.num_layers):
            x = F.relu(self.get_submodule(f"fc{i}")(x))
        return self.get_submodule(f"fc{self.num_layers}")(x)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    return torch.randn(B, 1, 8, 8)


@pytest.fixture
def targets():
    return torch.tensor([0, 1, 2, 1])


def distilling(alpha=0.7, temperature=4.0):
    return Objective(
        {"cross_entropy": CrossEntropy(1 - alpha), "soft_targets": SoftTargets(alpha, temperature)}
    )


def num_hooks(*models):
    return sum(len(m._forward_hooks) for model in models for m in model.modules())


def step(bound, student, teacher, inputs, targets):
    with bound.attached(student, teacher) as captured:
        with torch.no_grad():
            teacher_view = captured.teacher(teacher(inputs))
        return bound(captured.student(student(inputs)), teacher_view, targets)


def bind(term, student, teacher, inputs):
    return Objective({"cross_entropy": CrossEntropy(), "feature": term}).bind(student, teacher, inputs[:1])


# The sum


def test_total_is_the_weighted_sum_and_parts_are_unweighted(targets):
    student, teacher = ModelOutputs(torch.randn(B, K, requires_grad=True)), ModelOutputs(torch.randn(B, K))
    total, parts = distilling(0.7)(student, teacher, targets)
    cross_entropy = CrossEntropy()(student, None, targets).item()
    soft = SoftTargets()(student, teacher, targets).item()
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy)
    assert parts["soft_targets"].item() == pytest.approx(soft)
    assert total.item() == pytest.approx(0.3 * cross_entropy + 0.7 * soft, rel=1e-6)
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())


def test_scale_multiplies_the_total_alone(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    terms = {"cross_entropy": CrossEntropy(0.5), "dkd": DKD(0.5)}
    total, parts = Objective(terms, scale=2.0)(student, teacher, targets)
    assert total.item() == pytest.approx(sum(parts.values()).item(), rel=1e-6)


def test_terms_of_weight_zero_are_left_out(targets):
    objective = distilling(0.0)
    assert not objective.needs_teacher
    total, parts = objective(ModelOutputs(torch.randn(B, K)), None, targets)
    assert list(parts) == ["cross_entropy"]
    assert total.item() == parts["cross_entropy"].item()


def test_needs():
    assert not Objective({"a": CrossEntropy()}).needs_teacher
    assert distilling().needs_teacher
    assert not distilling().needs_features
    assert Objective({"a": CrossEntropy(), "b": Hint()}).needs_features
    assert not Objective({"a": CrossEntropy(), "b": Hint(weight=0.0)}).needs_features


def test_autocast_does_not_lower_the_precision_of_losses(inputs, targets):
    student, teacher = Net(), Net(width=6)
    bound = bind(SimilarityPreserving(match="same_name"), student, teacher, inputs)
    with bound.attached(student, teacher) as captured, torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            teacher_view = captured.teacher(teacher(inputs))
        student_view = captured.student(student(inputs))
        inside = bound(student_view, teacher_view, targets)[0]
    assert student_view.logits.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert inside.item() == bound(student_view, teacher_view, targets)[0].item()


# Values that cannot be


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Objective({}), r"terms: got \{\}, expected at least one term"),
        (lambda: distilling(1.2), r"terms\.\w+\.weight"),
        (lambda: distilling(-0.1), r"terms\.soft_targets\.weight: got -0\.1, expected >= 0 and <= 1"),
        (
            lambda: distilling(math.nan),
            "weight: got nan, expected a finite number",
        ),
        (lambda: distilling(0.5, 0), r"temperature: got 0, expected >= 0\.001"),
        (
            lambda: Objective({"ce": CrossEntropy(-1.0), "mse": LogitMSE(1.0)}),
            r"terms\.ce\.weight: got -1\.0, expected a number >= 0",
        ),
        (
            lambda: Objective({"ce": CrossEntropy("0.5")}),  # type: ignore[arg-type]
            r"weight: got '0\.5', expected a number",
        ),
        (
            lambda: Objective({"ce": CrossEntropy(0.0), "mse": LogitMSE(0.0)}),
            r"terms: got \['ce', 'mse'\], expected",
        ),
        (
            lambda: Objective({"ce": CrossEntropy()}, scale=0.0),
            r"scale: got 0\.0, expected > 0",
        ),
    ],
)
def test_impossible_values_name_their_key(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_kind_of_term_is_refused():
    @dataclass(frozen=True)
    class Odd:
        weight: float = 1.0
        kind = "labels"

        def __call__(self, student, teacher, targets):
            return student.logits.sum()

    with pytest.raises(ValueError, match=r"terms\.odd\.kind: got 'labels', expected"):
        Objective({"odd": Odd()})


# Reweighting


def test_reweighted_alpha_changes_the_loss(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    total, parts = distilling(0.7).reweighted(alpha=0.2)(student, teacher, targets)
    assert total.item() == pytest.approx(
        (0.8 * parts["cross_entropy"] + 0.2 * parts["soft_targets"]).item(), rel=1e-6
    )
    assert total.item() != pytest.approx(distilling(0.7)(student, teacher, targets)[0].item(), rel=1e-3)


def test_reweighted_temperature_changes_the_loss(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    original = distilling(0.7, 4.0)
    total = original.reweighted(temperature=1.5)(student, teacher, targets)[0]
    assert total.item() == distilling(0.7, 1.5)(student, teacher, targets)[0].item()
    assert original.terms["soft_targets"].temperature == 4.0  # type: ignore[attr-defined]


def test_reweighted_leaves_features_and_scale():
    objective = Objective({"a": CrossEntropy(0.3), "b": SoftTargets(0.7), "c": Hint(100.0)}, scale=2.0)
    changed = objective.reweighted(alpha=1.0)
    assert [term.weight for term in changed.terms.values()] == [0.0, 1.0, 100.0]
    assert changed.scale == 2.0
    assert objective.reweighted() == objective


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (distilling(), {"alpha": 1.5}, r"alpha: got 1\.5, expected <= 1"),
        (distilling(), {"temperature": 0.0}, r"temperature: got 0\.0, expected >= 0\.001"),
        (Objective({"a": CrossEntropy()}), {"alpha": 0.5}, r"alpha: got 0\.5, expected"),
        (
            Objective({"b": SoftTargets()}),
            {"alpha": 0.5},
            r"alpha: got 0\.5, expected",
        ),
        (
            Objective({"a": CrossEntropy(), "b": LogitMSE()}),
            {"temperature": 2.0},
            r"temperature: got 2\.0, expected",
        ),
    ],
)
def test_reweighting_that_cannot_be(objective, changes, message):
    with pytest.raises(ValueError, match=message):
        objective.reweighted(**changes)


# A user's own term


def test_a_dataclass_with_a_weight_and_a_call_is_a_term(targets):
    @dataclass(frozen=True)
    class Agreement:
        weight: float = 1.0
        temperature: float = 2.0

        def __call__(self, student, teacher, targets):
            return (student.logits - teacher.logits).abs().mean() / self.temperature

    objective = Objective({"a": CrossEntropy(0.5), "own": Agreement(0.5)})
    assert objective.needs_teacher
    changed = objective.reweighted(alpha=0.25, temperature=1.0)
    student, teacher = ModelOutputs(torch.zeros(B, K)), ModelOutputs(torch.ones(B, K))
    total, parts = changed(student, teacher, targets)
    assert parts["own"].item() == 1.0
    assert total.item() == pytest.approx(0.75 * math.log(K) + 0.25, rel=1e-6)


# Binding


def test_logits_alone_need_no_hooks(inputs, targets):
    student, teacher = Net(), Net()
    bound = distilling().bind(student, teacher, inputs[:1])
    assert bound.student_capture == bound.teacher_capture == ()
    assert not bound.needs_features
    assert list(bound.parameters()) == []
    with bound.attached(student, teacher) as captured:
        assert num_hooks(student, teacher) == 0
        total, _ = bound(captured.student(student(inputs)), captured.teacher(teacher(inputs)), targets)
    total.backward()
    assert student.conv1.weight.grad is not None
    assert teacher.conv1.weight.grad is None


def test_cached_logits_need_no_teacher_module(inputs, targets):
    student, teacher = Net(), Net()
    bound = distilling().bind(student, teacher, inputs[:1])
    cached = teacher(inputs).detach()
    with bound.attached(student) as captured:
        total, _ = bound(captured.student(student(inputs)), captured.teacher(cached), targets)
    assert total.item() == pytest.approx(step(bound, student, teacher, inputs, targets)[0].item())


def test_cross_entropy_alone_binds_without_a_teacher(inputs, targets):
    student = Net()
    bound = Objective({"cross_entropy": CrossEntropy()}).bind(student, None, inputs[:1])
    assert not bound.needs_teacher
    with bound.attached(student) as captured:
        total, _ = bound(captured.student(student(inputs)), None, targets)
    assert total.item() == pytest.approx(F.cross_entropy(student(inputs), targets).item())


def test_binding_without_a_needed_teacher(inputs):
    with pytest.raises(ValueError, match="soft_targets compares with a teacher, got none; write kd=non"):
        distilling().bind(Net(), None, inputs[:1])


def test_binding_to_a_teacher_of_other_classes(inputs):
    with pytest.raises(ValueError, match=r"\[1, 3\] from the student, \[1, 10\] from the teacher"):
        distilling().bind(Net(), Net(num_classes=10), inputs[:1])


def test_binding_changes_nothing_of_the_models(inputs):
    student, teacher = Net(), Net()
    teacher.eval()
    student.layer1.eval()
    before = copy.deepcopy(student.state_dict())
    modes = [m.training for m in student.modules()]
    state = torch.get_rng_state()
    bind(Hint(match="same_name"), student, teacher, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in student.modules()] == modes
    assert not any(m.training for m in teacher.modules())
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert num_hooks(student, teacher) == 0


def test_explicit_pairs_are_tapped_and_compared(inputs, targets):
    student, teacher = Net(), Net()
    bound = bind(Hint(pairs={"layer1.0.conv1": "layer1", "conv1": "conv1"}), student, teacher, inputs)
    assert bound.student_capture == ("layer1.0.conv1", "conv1")
    assert bound.teacher_capture == ("layer1", "conv1")
    _, parts = step(bound, student, teacher, inputs, targets)
    x = inputs
    expected = F.mse_loss(student.conv1(x), teacher.conv1(x))
    expected += F.mse_loss(student.layer1[0].conv1(student.conv1(x)), teacher.layer1(teacher.conv1(x)))
    assert parts["feature"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_hooks_are_removed_even_after_an_error(inputs, targets):
    student, teacher = Net(), Net()
    bound = bind(Hint(), student, teacher, inputs)

    def fail():
        with bound.attached(student, teacher):
            assert num_hooks(student) == num_hooks(teacher) == 1
            raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        fail()
    assert num_hooks(student, teacher) == 0
    step(bound, student, teacher, inputs, targets)
    assert num_hooks(student, teacher) == 0


def test_a_view_without_a_forward_pass_is_refused(inputs):
    student, teacher = Net(), Net()
    bound = bind(Hint(), student, teacher, inputs)
    with bound.attached(student, teacher) as captured:
        logits = student(inputs)
        captured.student(logits)
        with pytest.raises(RuntimeError, match="no output of layer1"):
            captured.student(logits)


def test_a_model_compiled_within_the_context_shows_its_features(inputs, targets):
    student, teacher = Net(), Net()
    bound = bind(Hint(), student, teacher, inputs)
    expected = step(bound, student, teacher, inputs, targets)[0].item()
    torch._dynamo.reset()
    with bound.attached(student, teacher) as captured:
        compiled = torch.compile(student, backend="eager")
        for _ in range(2):
            with torch.no_grad():
                teacher_view = captured.teacher(teacher(inputs))
            total, _ = bound(captured.student(compiled(inputs)), teacher_view, targets)
            assert total.item() == pytest.approx(expected, rel=1e-5)


def test_features_with_a_missing_teacher(inputs, targets):
    student, teacher = Net(), Net()
    bound = bind(Hint(), student, teacher, inputs)
    with pytest.raises(ValueError, match=r"expected the model whose modules layer1 are captured, got None"):
        bound.attached(student, None).__enter__()
    with bound.attached(student, teacher) as captured:
        view = captured.student(student(inputs))
        with pytest.raises(ValueError, match=r"feature compares features with a teacher's"):
            bound(view, None, targets)
    assert num_hooks(student, teacher) == 0


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
            r"terms\.feature\.pairs: got 'layer1\.0\.conv3', expected",
        ),
        (
            Hint(pairs={"conv1": "cnov1"}),
            r"terms\.feature\.pairs: got 'cnov1', expected",
        ),
        (Hint(pairs={"unused": "conv1"}), r"terms\.feature\.pairs: got 'unused', expected"),
        (
            AttentionTransfer(pairs={"linear": "linear"}),
            r"terms\.feature\.pairs: got \{'linear': 'linear'\}, expected",
        ),
        (
            Hint(match="same_name", include=["nothing*"]),
            r"terms\.feature\.match: got 'same_name', expected",
        ),
    ],
)
def test_modules_that_do_not_fit(term, message, inputs):
    with pytest.raises(ValueError, match=message):
        bind(term, Net(), Net(), inputs)


def test_no_match_lists_what_there_is(inputs):
    with pytest.raises(ValueError, match=r"terms\.feature\.match: got 'same_name', expected"):
        bind(Hint(match="same_name"), Mlp([16]), Tokens(), inputs)
    with pytest.raises(ValueError, match=r"fc1: attention transfer expects"):
        bind(AttentionTransfer(), Mlp([16]), Mlp([16]), inputs)


# The configs


def build(path, **changes):
    import hydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("complement"):
        OmegaConf.register_new_resolver("complement", lambda x: 1 - x)
    config = OmegaConf.create({"kd": OmegaConf.load(path), "train": {"label_smoothing": 0.1}})
    for key, value in changes.items():
        config.kd[key] = value
    return hydra.utils.instantiate(config.kd.objective, _convert_="all")


# One other value for each number at the top of a config, by which each is shown to be read.
OTHER = {
    "alpha": 0.25,
    "temperature": 2.5,
    "standardize": True,
    "scale": 3.0,
    "target_weight": 0.5,
    "non_target_weight": 2.0,
    "gamma": 0.75,
    "beta": 0.75,
    "feature_weight": 7.0,
    "distance_weight": 3.0,
    "angle_weight": 3.0,
    "match": "same_name",
    "pairs": {"conv1": "conv1"},
}


@pytest.mark.parametrize("path", KD_CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_binds_and_trains(path, inputs, targets):
    objective = build(path)
    assert objective.terms["cross_entropy"].label_smoothing == 0.1
    student, teacher = Net(width=4), Net(width=6)
    bound = objective.bind(student, teacher if objective.needs_teacher else None, inputs[:2])
    assert isinstance(bound, BoundObjective)
    total, parts = step(bound, student, teacher, inputs, targets)
    assert set(parts) == set(objective.active)
    total.backward()
    assert torch.isfinite(student.conv1.weight.grad).all()
    assert student.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("path", KD_CONFIGS, ids=lambda path: path.stem)
def test_every_number_at_the_top_of_a_config_is_read(path):
    from omegaconf import OmegaConf

    keys = [key for key in OmegaConf.load(path) if key != "objective"]
    base = build(path)
    for key in keys:
        if key == "include":
            other = build(path, include=["conv1"], match="same_name")
            assert other != build(path, match="same_name")
        else:
            value = (
                "last" if key == "match" and base.terms[path_term(base)].match == "same_name" else OTHER[key]
            )
            assert build(path, **{key: value}) != base, key


def path_term(objective):
    return next(name for name, term in objective.terms.items() if getattr(term, "kind", "") == "features")


def test_there_is_a_config_for_every_loss():
    assert [path.stem for path in KD_CONFIGS] == [
        "attention_transfer",
        "dist",
        "dkd",
        "fitnets",
        "logit_mse",
        "nkd",
        "none",
        "rkd",
        "similarity_preserving",
        "soft_targets",
    ]


def test_defaults_are_those_of_the_papers():
    terms = {path.stem: build(path).terms for path in KD_CONFIGS}
    assert terms["soft_targets"]["soft_targets"] == SoftTargets(0.7, 4.0)
    assert terms["soft_targets"]["cross_entropy"].weight == pytest.approx(0.3)
    assert terms["dkd"]["dkd"] == DKD(0.5, 4.0, target_weight=1.0, non_target_weight=8.0)
    assert terms["rkd"]["rkd"] == RKD(1.0, 25.0, 50.0)
    assert terms["fitnets"]["hint"] == Hint(100.0)
    assert terms["attention_transfer"]["attention_transfer"] == AttentionTransfer(1000.0)
    assert terms["similarity_preserving"]["similarity_preserving"] == SimilarityPreserving(3000.0)
    assert not build(next(path for path in KD_CONFIGS if path.stem == "none")).needs_teacher


@pytest.mark.parametrize(
    "path", [path for path in KD_CONFIGS if path.stem != "none"], ids=lambda path: path.stem
)
def test_alpha_out_of_range_is_named_in_every_config(path):
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException, match=r"terms\.\w+\.weight"):
        build(path, alpha=1.2)

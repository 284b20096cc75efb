"""Objectives bound to a student and a teacher: what they tap, and that nothing of it is left."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kd_nets import Net, bind, distilling, num_hooks, step

from compresskd.kd.features import Hint
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective

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
    with pytest.raises(ValueError, match="soft_targets compares with a teacher, got none"):
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

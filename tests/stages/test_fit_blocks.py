"""Blocks are fitted one after the other to the teacher's hidden states, and nothing but what runs is computed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from refusals import says
from small_architectures import build, inputs
from torch import nn

from compresskd.compression.block_calls import calls_of, hidden_before, links, relative_error
from compresskd.engine.strategy import State, Strategy
from compresskd.options import OptionError
from compresskd.stages import FitBlocks, fit_blocks
from compresskd.stages.fit_blocks import ENTERING
from compresskd.tasks import Batch, tensors_of

B = 4


class Samples:
    """A split whose batches are given."""

    strata, fingerprint, name = None, "", "train"

    def __init__(self, *given):
        self.given = given

    def __len__(self):
        return sum(len(next(tensors_of(x))) for x in self.given)

    def take(self, positions, fingerprint):
        return self

    def batches(self, batch_size):
        for x in self.given:
            size = len(next(tensors_of(x)))
            yield Batch(x, torch.zeros(size, dtype=torch.long), torch.arange(size), 0)


class Run(SimpleNamespace):
    """What a stage sees of a run: it may be stopped when it saves for the `stop`-th time."""

    def __init__(self, split, saved=None, stop=None):
        recipe = SimpleNamespace(precision="fp32", checkpoint_seconds=-1.0)
        notes = []
        reporter = SimpleNamespace(note=notes.append, step=lambda step: None)
        super().__init__(
            data=SimpleNamespace(train=split, unlabelled=None), stage="fit_blocks", stage_seed=5, recipe=recipe,
            reporter=reporter, device=torch.device("cpu"), details={}, notes=notes, saved=saved, stop=stop, saves=0,
        )  # fmt: skip

    def training_state(self):
        return self.saved

    def save_training(self, state):
        self.saved, self.saves = copy.deepcopy(state), self.saves + 1
        if self.saves == self.stop:
            raise KeyboardInterrupt


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, *, scale):
        return x + scale * self.down(self.act(self.up(x)))


class Net(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 3)
        self.heads = 0

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, scale=2.0)
        self.heads += 1
        return self.head(x.mean(dim=1))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def samples():
    return Samples(*torch.randn(10, B, 5, 6, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def student(teacher):
    """With every matrix but the head's cut to rank 3."""
    cut = copy.deepcopy(teacher)
    with torch.no_grad():
        for name, parameter in cut.named_parameters():
            if parameter.ndim == 2 and not name.startswith("head"):
                u, s, v = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(u[:, :3] * s[:3] @ v[:3])
    return cut


def distance(student, teacher, samples):
    with torch.no_grad():
        return sum(float((student(x) - teacher(x)).square().sum()) for x in samples.given)


def fitted(student, teacher, samples, **options):
    run = Run(samples)
    stage = FitBlocks(**{"updates": 60, "learning_rate": 1e-2, **options})
    state = State(copy.deepcopy(student), teacher)
    assert stage.check(state, samples.given[0]) is state
    return stage(state, run).student, run


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_every_block_comes_nearer_to_the_teacher_s(of, student, teacher, samples):
    before = distance(student, teacher, samples)
    found, run = fitted(student, teacher, samples, inputs=of)
    errors = run.details["block_errors"]
    assert list(errors) == [ENTERING, "blocks.0", "blocks.1", "blocks.2"]
    assert all(error["after"] < 0.5 * error["before"] for error in errors.values())
    assert distance(found, teacher, samples) < 0.2 * before
    assert torch.equal(found.head.weight, teacher.head.weight)
    assert len(run.notes) == 4
    assert not any(p.grad is not None and p.grad.any() for p in found.parameters())


def test_no_logits_are_computed(student, teacher, samples):
    found, _ = fitted(student, teacher, samples, updates=3)
    assert (found.heads, teacher.heads) == (1, 0)  # the check beforehand runs the student once


def test_a_copy_of_the_teacher_is_left_as_it_is(teacher, samples):
    found, run = fitted(copy.deepcopy(teacher), teacher, samples, updates=3)
    assert all(error == {"before": 0.0, "after": 0.0} for error in run.details["block_errors"].values())
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), teacher.parameters(), strict=True))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_it_resumes_after_the_last_block_to_the_same_end(stop, student, teacher, samples):
    whole, run = fitted(student, teacher, samples, updates=8)
    stage = FitBlocks(updates=8, learning_rate=1e-2)
    interrupted = Run(samples, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        stage(State(copy.deepcopy(student), teacher), interrupted)
    again = Run(samples, saved=interrupted.saved)
    found = stage(State(copy.deepcopy(student), teacher), again).student
    assert f"resumes after {stop} blocks" in again.notes[0]
    assert again.details == run.details
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))


def test_the_model_of_an_earlier_stage_takes_the_teacher_s_place(monkeypatch, student, teacher, samples):
    whole, _ = fitted(student, teacher, samples, updates=8)
    asked = []
    monkeypatch.setattr(fit_blocks, "earlier", lambda name, context: asked.append(name) or teacher)
    stage = FitBlocks(updates=8, learning_rate=1e-2, toward="distill")
    assert not stage.needs_teacher
    state = State(copy.deepcopy(student), None)
    assert stage.check(state, samples.given[0]) is state
    found = stage(state, Run(samples)).student
    assert asked == ["distill"]
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("place", [("fit", "later"), ("fit",), ("earlier", "fit")])
def test_only_an_earlier_stage_can_be_fitted_to(place):
    stages = {name: FitBlocks(toward="later") if name == "fit" else FitBlocks() for name in place}
    with pytest.raises(OptionError, match=r"stages\.fit\.toward: got 'later', expected .*stage") as refused:
        Strategy("own", stages)
    assert "earlier" not in place or "earlier" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "llama", "t5", "whisper_encoder", "timm_resnet18", "timm_vit"]
)
def test_architectures(name):
    teacher = build(name).eval()
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    _, run = fitted(student, teacher, Samples(*[inputs(name)] * 2), updates=4, learning_rate=1e-3)
    errors = list(run.details["block_errors"].values())
    assert len(errors) > 2
    assert all(error["after"] <= error["before"] for error in errors)
    assert any(error["after"] < error["before"] for error in errors)


def test_padding_counts_for_nothing():
    ours, theirs = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    value = relative_error(ours, theirs, mask)
    assert value > 0
    assert torch.equal(relative_error(torch.where(mask[..., None], ours, 9.0), theirs, mask), value)


def test_the_error_is_relative_position_by_position():
    theirs = torch.ones(1, 4, 2) * torch.tensor([1.0, 1.0, 1.0, 1000.0])[:, None]
    assert relative_error(1.1 * theirs, theirs, None).item() == pytest.approx(0.01, rel=1e-4)
    image = theirs.transpose(1, 2).unflatten(-1, (2, 2))
    assert relative_error(1.1 * image, image, None).item() == pytest.approx(0.01, rel=1e-4)


class Plain(nn.Module):
    """Layers with something between them, and no stack."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.mean(dim=1)).relu()))


def test_layers_are_the_blocks_of_a_model_without_any(samples):
    torch.manual_seed(3)
    teacher = Plain()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    assert links(teacher, ["fc1", "fc2", "fc3"], samples.given[0]) == {"fc3"}
    before = distance(student, teacher, samples)
    found, run = fitted(student, teacher, samples)
    assert list(run.details["block_errors"]) == [ENTERING, "fc1", "fc2", "fc3"]
    assert distance(found, teacher, samples) < 0.1 * before


def test_a_pass_ends_at_the_last_block_that_is_asked_for(teacher, samples):
    found = calls_of(teacher, ["blocks.0", "blocks.1"], samples.given[0])
    assert list(found) == ["blocks.0", "blocks.1"]
    assert found["blocks.1"].kwargs == {"scale": 2.0}
    assert teacher.heads == 0
    moved = found["blocks.0"].run(teacher.blocks[0], found["blocks.0"].hidden)
    assert torch.equal(moved, hidden_before(teacher, "blocks.1", samples.given[0]))
    assert found["blocks.1"].hidden.numel() == 0
    assert all(not module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize(
    "other", [Net(width=12), Net(depth=2), nn.Flatten()], ids=["wider", "shallower", "other"]
)
def test_a_student_that_was_not_made_of_the_teacher_is_refused(other, teacher, samples):
    with pytest.raises(ValueError, match="made from the teacher"):
        FitBlocks().check(State(other, teacher), samples.given[0])


def test_a_block_that_runs_several_times_is_refused():
    albert = build("albert").eval()
    with pytest.raises(ValueError, match="2 times"):
        FitBlocks().check(State(copy.deepcopy(albert), albert), inputs("albert"))


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match=says("inputs", "labels", "student, teacher")):
        FitBlocks(inputs="labels")


def test_samples_without_labels_are_seen_and_never_held_out():
    drawn = torch.randn(3, B, 6, generator=torch.Generator().manual_seed(0))

    class Drawn(Samples):
        def take(self, positions, fingerprint):
            return Samples(*(x[:1] for x in self.given[: len(positions)]))

    data = SimpleNamespace(train=Drawn(drawn[0]), unlabelled=Drawn(*drawn[1:]))
    stage = FitBlocks(num_samples=6, batch_size=1)
    found = [batch.inputs for batch in stage._batches(data, 0)]
    assert len(found) == 3
    assert torch.equal(found[-1], drawn[0][:1])

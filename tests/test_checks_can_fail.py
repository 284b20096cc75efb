"""Every check fails on an input that it must not let through: NaN, nothing, a broadcast, a constant, other bytes.

A row is a check, a counter-example and what is to be said of it. Checks of a whole command line stand beside the
command (tests/cli/test_bad_inputs.py), damaged files beside their format (tests/artifact).
"""

import math

import numpy as np
import pytest
import torch
from refusals import says
from torch import nn

from compresskd import tt
from compresskd.artifact.content import check_plain, check_scale
from compresskd.artifact.errors import ArtifactError
from compresskd.compare.flags import flag
from compresskd.compare.pareto import front
from compresskd.compare.predictions import PredictionsError, read_scores
from compresskd.compare.statistics import paired_bootstrap
from compresskd.data.augmentation.erasing import RandomErasing
from compresskd.data.checks import check_declared
from compresskd.data.normalize import Normalize
from compresskd.export.agreement import Agreement, check, compare, worst
from compresskd.export.errors import ExportFailed
from compresskd.export.samples import Samples
from compresskd.kd.correlation import DIST
from compresskd.kd.logits import CrossEntropy, LogitMSE, SoftTargets
from compresskd.metric import ACCURACY
from compresskd.models.lenet import LeNet5
from compresskd.models.mlp import MLP
from compresskd.models.vit import VisionTransformer
from compresskd.models.weights import load_weights
from compresskd.quant.cores import quantize_cores
from compresskd.quant.granularity import PerChannel, PerGroup, PerRankSlice, granularity_from_plain
from compresskd.quant.grid import Grid
from compresskd.quant.scale import find_scale
from compresskd.reports.evaluate import Verdict
from compresskd.run.errors import RunDirectoryError
from compresskd.run.files import read_checked, write_checked
from compresskd.stages.fold_batch_norm import fold_batch_norms
from compresskd.tasks import ModelOutputs
from compresskd.tt.decompose.metric import check_covariance
from compresskd.tt.decompose.ranks import SizeTarget

NAN, INF = math.nan, math.inf
X = torch.ones(4, 2)
IMAGES = {"num_classes": 2, "input_shape": [3, 32, 32]}
SAMPLES = Samples(X, "4 samples")


def answers(value):
    return lambda x: torch.full((len(x), 3), float(value))


def agree(source, exported, inputs=X, rounds_inputs=False):
    check(compare(source, exported, inputs), SAMPLES, rounds_inputs=rounds_inputs)


def found(difference, largest=1.0, equal=1.0, rounds_inputs=False):
    check(Agreement(difference, largest, equal, 4), SAMPLES, rounds_inputs=rounds_inputs)


def logits(term, s, t):
    return term(ModelOutputs(s), ModelOutputs(t), torch.zeros(len(s), dtype=torch.int64))


REFUSED = {
    "agreement: both answer NaN": (
        lambda: agree(answers(NAN), answers(NAN)),
        ExportFailed,
        "the model itself answers NaN",
    ),
    "agreement: the export answers NaN": (
        lambda: agree(answers(1), answers(NAN)),
        ExportFailed,
        "the exported model answers NaN",
    ),
    "agreement: the export answers infinity": (
        lambda: agree(answers(1), answers(INF)),
        ExportFailed,
        "the exported model",
    ),
    "agreement: both answer -infinity": (
        lambda: agree(answers(-INF), answers(-INF)),
        ExportFailed,
        "the model itself",
    ),
    "agreement: no sample": (
        lambda: agree(answers(1), answers(1), X[:0]),
        ExportFailed,
        "nothing to compare",
    ),
    "agreement: no output": (
        lambda: agree(lambda x: x[:, :0], lambda x: x[:, :0]),
        ExportFailed,
        "nothing to compare",
    ),
    "agreement: fewer outputs than samples": (
        lambda: agree(lambda x: x[:1], lambda x: x[:1], X, False),
        ExportFailed,
        r"for \d+ samples",
    ),
    "agreement: [N, 1] beside [N]": (
        lambda: agree(lambda x: x[:, :1], lambda x: x[:, 0]),
        ExportFailed,
        r"expected outputs \[1, 1\]",
    ),
    "agreement: another type": (
        lambda: agree(answers(1), lambda x: answers(1)(x).double()),
        ExportFailed,
        "float64",
    ),
    "agreement: zeros for small outputs": (
        lambda: agree(lambda x: 1e-5 * torch.eye(3)[torch.arange(len(x)) % 3 + 0], answers(0)),
        ExportFailed,
        "answers otherwise",
    ),
    "agreement: a thousandfold, rounded inputs": (
        lambda: agree(
            lambda x: torch.eye(3)[:1].repeat(len(x), 1),
            lambda x: 1000 * torch.eye(3)[:1].repeat(len(x), 1),
            X,
            True,
        ),
        ExportFailed,
        "answers otherwise",
    ),
    "verdict of an agreement: NaN": (lambda: found(NAN), ExportFailed, "answers otherwise"),
    "verdict of an agreement: NaN beside": (lambda: found(0.0, NAN), ExportFailed, "answers otherwise"),
    "verdict of an agreement: just beyond": (lambda: found(1.01e-4), ExportFailed, "answers otherwise"),
    "verdict of an agreement: rounded, half beyond": (
        lambda: found(0.51, rounds_inputs=True),
        ExportFailed,
        "answers otherwise",
    ),
    "verdict of an agreement: rounded, other predictions": (
        lambda: found(0.1, equal=0.9, rounds_inputs=True),
        ExportFailed,
        "answers otherwise",
    ),
    "the worst of no way": (lambda: worst([]), ValueError, "empty"),
    "temperature: NaN": (lambda: SoftTargets(temperature=NAN), ValueError, says("temperature", "got nan")),
    "temperature: infinity": (
        lambda: SoftTargets(temperature=INF),
        ValueError,
        says("temperature", "got inf"),
    ),
    "temperature: -0.0": (lambda: SoftTargets(temperature=-0.0), ValueError, says("temperature", "got -0.0")),
    "temperature: true": (lambda: SoftTargets(temperature=True), ValueError, says("temperature", "got true")),
    "weight: NaN": (lambda: DIST(beta=NAN), ValueError, says("beta", "got nan")),
    "label smoothing: 1": (lambda: CrossEntropy(label_smoothing=1.0), ValueError, says("label_smoothing")),
    "logits: a broadcast": (
        lambda: logits(LogitMSE(), torch.zeros(4, 3), torch.zeros(1, 3)),
        ValueError,
        "of one shape",
    ),
    "logits: [N, 1] beside [N, K]": (
        lambda: logits(SoftTargets(), torch.zeros(4, 3), torch.zeros(4, 1)),
        ValueError,
        "of one shape",
    ),
    "logits: one class": (
        lambda: logits(DIST(), torch.zeros(4, 1), torch.zeros(4, 1)),
        ValueError,
        "of 2 or more",
    ),
    "covariance: NaN": (lambda: check_covariance(torch.full((2, 2), NAN), 2), ValueError, "finite"),
    "covariance: zeros": (lambda: check_covariance(torch.zeros(2, 2), 2), ValueError, "not zero"),
    "covariance: a broadcast": (
        lambda: check_covariance(torch.ones(1, 2), 2),
        ValueError,
        r"expected input_covariance \[2, 2\]",
    ),
    "covariance: negative": (lambda: check_covariance(-torch.eye(2), 2), ValueError, "positive semidefinite"),
    "rank: NaN": (lambda: SizeTarget(rank=NAN), ValueError, "rank >= 1"),
    "ranks: none": (lambda: SizeTarget(ranks=()), ValueError, "ranks >= 1"),
    "ranks: NaN": (lambda: SizeTarget(ranks=(2, NAN)), ValueError, "ranks >= 1"),
    "tolerance: NaN": (lambda: SizeTarget(tolerance=NAN), ValueError, "tolerance"),
    "energy: NaN": (lambda: SizeTarget(energy=NAN), ValueError, "energy"),
    "parameters: NaN": (lambda: SizeTarget(num_parameters=NAN), ValueError, "num_parameters"),
    "no wish": (SizeTarget, ValueError, "exactly one"),
    "factorization: NaN": (
        lambda: tt.factorize(
            nn.utils.skip_init(nn.Linear, 16, 16).requires_grad_(False).apply(lambda m: m.weight.fill_(NAN)),
            rank=1,
        ),
        ValueError,
        "finite weights",
    ),
    "scale of weights: NaN": (
        lambda: find_scale(torch.tensor([[NAN]]), Grid(4), PerChannel(0)),
        ValueError,
        "not finite",
    ),
    "scale of a file: NaN": (
        lambda: check_scale("w", torch.tensor([NAN])),
        ArtifactError,
        "above zero and finite",
    ),
    "scale of a file: 0": (
        lambda: check_scale("w", torch.tensor([1.0, 0.0])),
        ArtifactError,
        "above zero and finite",
    ),
    "plain values: a tensor": (
        lambda: check_plain({"a": [torch.zeros(1)]}, "kwargs"),
        ArtifactError,
        "got Tensor",
    ),
    "cores: none": (lambda: quantize_cores([], 4), ValueError, "expected cores"),
    "cores: NaN": (lambda: quantize_cores([torch.full((1, 2, 2, 1), NAN)], 4), ValueError, "finite"),
    "a scale per channel of a number": (lambda: PerChannel(0).num_scales(()), ValueError, "does not fit"),
    "a scale per group of none": (lambda: PerGroup(0), ValueError, "size: got 0"),
    "a scale per rank of a matrix": (
        lambda: PerRankSlice().num_scales((2, 2)),
        ValueError,
        "tensor-train core",
    ),
    "granularity: of nothing": (lambda: granularity_from_plain([]), ValueError, "expected"),
    "normalize: std NaN": (lambda: Normalize((0.0,), (NAN,)), ValueError, "std: "),
    "normalize: std infinite": (lambda: Normalize((0.0,), (INF,)), ValueError, "std: "),
    "normalize: std 0": (lambda: Normalize((0.0,), (0.0,)), ValueError, "std: "),
    "normalize: mean NaN": (lambda: Normalize((NAN,), (1.0,)), ValueError, "mean: "),
    "normalize: no value": (lambda: Normalize((), ()).check((3, 2, 2)), ValueError, "expected 1 or 3 values"),
    "erasing: fill NaN": (lambda: RandomErasing(fill=NAN), ValueError, "fill"),
    "declared shape: of a broadcast": (
        lambda: check_declared(None, [1], (3, 2, 2), ("a", "b")),
        ValueError,
        "input_shape: ",
    ),
    "model: a fraction NaN": (lambda: VisionTransformer(dropout=NAN, **IMAGES), ValueError, "dropout"),
    "model: positive infinity": (lambda: LeNet5(width_multiplier=INF, **IMAGES), ValueError, "width_mult"),
    "model: a shape of nothing": (lambda: MLP(num_classes=2, input_shape=[]), ValueError, "input_shape"),
    "bootstrap: no seed": (lambda: paired_bootstrap(np.zeros((0, 5), np.int8)), ValueError, "at least one"),
    "bootstrap: no sample": (lambda: paired_bootstrap(np.zeros((2, 0), np.int8)), ValueError, "at least one"),
}


@pytest.mark.parametrize(("attempt", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()


def test_what_is_right_passes():
    agree(answers(1), lambda x: answers(1)(x) + 5e-5)
    found(0.04, rounds_inputs=True)
    found(0.3, equal=0.99, rounds_inputs=True)


@pytest.mark.parametrize(
    ("accuracy", "recorded", "num_samples"),
    [(NAN, 0.5, 100), (0.5, NAN, 100), (NAN, NAN, 100), (0.5, 0.52, 100), (1.0, 0.0, 1), (0.5, 1.0, 2), (0.0, 0.0, 0)],
)  # fmt: skip
def test_not_reproduced(accuracy, recorded, num_samples):
    assert Verdict("train", ACCURACY, accuracy, recorded, num_samples).reproduced is False


def test_reproduced():
    assert Verdict("train", ACCURACY, 0.5, 0.51, 100).reproduced
    assert Verdict("train", ACCURACY, 1.0, 1.0, 1).reproduced
    assert Verdict("train", ACCURACY, 0.5, None, 100).reproduced is None


def test_checked_bytes(tmp_path):
    path = tmp_path / "state"
    write_checked(path, b"")
    assert read_checked(path) == b""
    write_checked(path, b"abc")
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(RunDirectoryError):
            read_checked(path)
        path.write_bytes(whole[:position])
        with pytest.raises(RunDirectoryError):
            read_checked(path)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_not_finite(tmp_path, value):
    model = nn.Linear(2, 2)
    torch.save({**model.state_dict(), "bias": torch.tensor([0.0, value])}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_weights(model, tmp_path / "w.pt")


@pytest.mark.parametrize(
    "arrays",
    [
        {"train": np.zeros(0, np.uint8), "targets": np.zeros(0, np.uint8)},
        {"train": np.zeros(1, np.uint8), "targets": np.zeros(4, np.uint8)},
        {"train": np.zeros((4, 1), np.uint8), "targets": np.zeros(4, np.uint8)},
        {"train": np.full(4, NAN), "targets": np.zeros(4, np.uint8)},
        {"targets": np.zeros(4, np.uint8)},
    ],
    ids=["nothing", "a broadcast", "[N, 1]", "NaN", "another stage"],
)
def test_predictions_that_cannot_be_compared(tmp_path, arrays):
    np.savez(tmp_path / "predictions.npz", **arrays)
    with pytest.raises(PredictionsError):
        read_scores(tmp_path, "train")


def test_an_unknown_cost_is_on_no_front():
    assert front([None, 2.0, 1.0], [0.9, 0.8, 0.8]) == [False, False, True]


def test_no_entries_have_no_flags():
    assert flag([], "test_accuracy", []) == []


class Branching(nn.Module):
    """The layer feeds the norm and the output; its bias makes it answer zeros to zeros."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.layer(x)
        return (self.norm(y) + y).mean((2, 3))


def test_a_norm_is_not_folded_on_the_word_of_zeros():
    """Doubled zeros are zeros: they do not show that the output of the layer is read beside the norm."""
    model = Branching().eval()
    nn.init.constant_(model.norm.weight, 3)
    x = torch.randn(2, 1, 3, 3)
    before = model(x)
    fold_batch_norms(model, torch.zeros(2, 1, 3, 3))
    torch.testing.assert_close(model(x), before)

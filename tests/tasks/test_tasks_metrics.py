"""Metrics against scikit-learn's, and the scores of samples."""

import math

import pytest
import torch
from sklearn import metrics as oracle

from compresskd.tasks import (
    CausalLM,
    Classification,
    Judged,
    MaskedLM,
    MultiLabel,
    Regression,
    TokenClassification,
)


def judged(predictions, targets, *, losses=None, sample=None, num_samples=None, loss=0.0, num_bytes=None):
    return Judged(
        predictions,
        targets,
        torch.empty(0) if losses is None else losses,
        sample,
        len(targets) if num_samples is None else num_samples,
        loss,
        num_bytes,
    )


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_classes_are_judged_as_scikit_learn_does(rng, num_classes):
    true = torch.randint(num_classes, (200,), generator=rng)
    wrong = torch.rand(200, generator=rng) < 0.4
    said = torch.where(wrong, torch.randint(num_classes, (200,), generator=rng), true)
    values = Classification().metrics_of(judged(said, true))
    assert values["accuracy"] == pytest.approx(oracle.accuracy_score(true, said))
    assert values["macro_f1"] == pytest.approx(oracle.f1_score(true, said, average="macro"))
    assert values["matthews"] == pytest.approx(oracle.matthews_corrcoef(true, said))


def test_very_many_classes_take_no_matrix_of_classes():
    true = torch.tensor([0, 300_000, 300_000])
    values = Classification().metrics_of(judged(torch.tensor([0, 300_000, 5]), true))
    assert values["macro_f1"] == pytest.approx(oracle.f1_score(true, [0, 300_000, 5], average="macro"))


def test_a_constant_prediction_has_no_correlation():
    values = Classification().metrics_of(judged(torch.zeros(4).long(), torch.tensor([0, 1, 0, 1])))
    assert values["matthews"] == 0.0
    assert values["macro_f1"] == pytest.approx(oracle.f1_score([0, 1, 0, 1], [0] * 4, average="macro"))


def test_labels_are_judged_as_scikit_learn_does(rng):
    true = (torch.rand(100, 6, generator=rng) < 0.3).float()
    said = (torch.rand(100, 6, generator=rng) < 0.4).to(torch.uint8)
    values = MultiLabel().metrics_of(judged(said, true))
    assert values["macro_f1"] == pytest.approx(oracle.f1_score(true, said, average="macro"))
    assert values["micro_f1"] == pytest.approx(oracle.f1_score(true, said, average="micro"))
    assert values["accuracy"] == pytest.approx(oracle.accuracy_score(true, said))
    assert MultiLabel().scores(judged(said, true)).mean() == pytest.approx(
        (said == true).double().mean().item()
    )


def test_values_are_judged_as_scikit_learn_does(rng):
    true = torch.randn(80, 2, generator=rng)
    said = true + 0.5 * torch.randn(80, 2, generator=rng)
    values = Regression().metrics_of(judged(said, true))
    assert values["r2"] == pytest.approx(oracle.r2_score(true, said), rel=1e-6)
    assert values["mse"] == pytest.approx(oracle.mean_squared_error(true, said), rel=1e-6)
    assert values["mae"] == pytest.approx(oracle.mean_absolute_error(true, said), rel=1e-6)
    correlation = [torch.corrcoef(torch.stack([said[:, k], true[:, k]]))[0, 1].item() for k in range(2)]
    assert values["pearson"] == pytest.approx(sum(correlation) / 2, rel=1e-5)


def test_constant_targets_give_no_number_that_is_none():
    values = Regression().metrics_of(judged(torch.zeros(5, 1), torch.ones(5, 1)))
    assert values["r2"] == 0.0
    assert values["pearson"] == 0.0
    assert all(math.isfinite(value) for value in values.values())


def test_perplexity_and_bits_per_byte():
    losses = torch.full((6,), math.log(8.0))
    sample = torch.tensor([0, 0, 0, 1, 1, 1])
    task = CausalLM()
    seen = judged(
        torch.zeros(6, dtype=torch.bool), torch.zeros(6).long(), losses=losses, sample=sample, num_samples=2,
        loss=math.log(8.0), num_bytes=9,
    )  # fmt: skip
    values = task.metrics_of(seen)
    assert values["perplexity"] == pytest.approx(8.0)
    assert values["bits_per_byte"] == pytest.approx(6 * 3 / 9)
    assert task.scores(seen).tolist() == pytest.approx([-math.log(8.0)] * 2)
    assert "bits_per_byte" not in MaskedLM().metrics_of(seen)


def test_scores_of_samples_are_means_over_their_rows():
    said, true = torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0])
    sample = torch.tensor([0, 0, 2])
    scores = TokenClassification().scores(judged(said, true, sample=sample, num_samples=3))
    assert scores.tolist() == [0.5, 0.0, 1.0]

"""Every term is the same on rows and on sequences, and padding has no influence on it."""

import pytest
import torch
import torch.nn.functional as F

from compresskd.kd.correlation import DIST
from compresskd.kd.decoupled import DKD, NKD
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.kd.logits import (
    BernoulliTargets,
    CrossEntropy,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    SoftTargets,
)
from compresskd.kd.relations import AttentionRelations
from compresskd.tasks import Batch, CausalLM, ModelOutputs, TokenClassification

B, L, K, C = 4, 6, 5, 3
ON_LOGITS = [CrossEntropy(), SoftTargets(), SoftTargets(standardize=True), LogitMSE(), DKD(), NKD(), DIST()]
ON_LOGITS += [ReverseKL(), JensenShannon(temperature=2.0)]
ON_FEATURES = [Hint(), AttentionTransfer(), RKD(), SimilarityPreserving(), AttentionRelations()]
TASKS = [TokenClassification(), CausalLM()]


def name_of(value):
    return getattr(value, "name", type(value).__name__)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def lengths():
    return [6, 3, 5, 2]


@pytest.fixture
def targets(rng, lengths):
    targets = torch.randint(K, (B, L), generator=rng)
    for row, length in enumerate(lengths):
        targets[row, length:] = -100
    return targets


@pytest.fixture
def mask(lengths):
    return torch.arange(L) < torch.tensor(lengths)[:, None]


def batch_of(targets, mask=None):
    ids = torch.zeros(targets.shape, dtype=torch.long)
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask.long()}
    return Batch(inputs, targets, torch.arange(len(targets)), view=0)


def padded(x, by, value):
    """`x` with `by` more positions."""
    return F.pad(x, (0, 0, 0, by) if x.ndim == 3 else (0, by), value=value)


@pytest.mark.parametrize("term", ON_LOGITS, ids=name_of)
@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_a_term_on_logits_is_that_of_the_rows(term, task, rng, targets, mask):
    s, t = (torch.randn(B, L, K, generator=rng) for _ in range(2))
    (student, of_rows), (teacher, _) = (task.rows(x, batch_of(targets, mask)) for x in (s, t))
    value = term(student, teacher, of_rows)
    assert value.ndim == 0
    alone = term(ModelOutputs(student.logits), ModelOutputs(teacher.logits), of_rows)
    assert value.item() == alone.item()
    more = batch_of(padded(targets, 7, -100), padded(mask, 7, False))
    (student, of_rows), (teacher, _) = (task.rows(padded(x, 7, 99.0), more) for x in (s, t))
    assert term(student, teacher, of_rows).item() == value.item()


def test_a_term_on_labels_is_of_all_labels(rng):
    s, t = (torch.randn(B, K, generator=rng) for _ in range(2))
    term = BernoulliTargets(temperature=2.0)
    p, q = (t / 2).sigmoid(), (s / 2).sigmoid()
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert term(ModelOutputs(s), ModelOutputs(t), targets=None).item() == pytest.approx(
        by_hand.item(), rel=1e-5
    )
    assert term(ModelOutputs(t), ModelOutputs(t), targets=None).item() == 0.0


def features(x, mask):
    return ModelOutputs(torch.zeros(B, K), {"layer": x}, mask=mask)


@pytest.mark.parametrize("term", ON_FEATURES, ids=name_of)
def test_padding_has_no_influence_on_a_term_on_features(term, rng, mask):
    s, t = (torch.randn(B, L, C, generator=rng) for _ in range(2))
    value = term(features(s, mask), features(t, mask), None)
    assert value.item() > 0
    garbled = torch.where(mask[..., None], s, 99.0)
    assert term(features(garbled, mask), features(t, mask), None).item() == pytest.approx(
        value.item(), rel=1e-6
    )
    longer = [padded(x, 5, 99.0) for x in (s, t)]
    more = term(*(features(x, padded(mask, 5, False)) for x in longer), None)
    assert more.item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("term", ON_FEATURES, ids=name_of)
def test_a_mask_without_padding_changes_nothing(term, rng):
    s, t = (torch.randn(B, L, C, generator=rng) for _ in range(2))
    whole = torch.ones(B, L, dtype=torch.bool)
    masked, plain = (term(features(s, mask), features(t, mask), None) for mask in (whole, None))
    assert masked.item() == pytest.approx(plain.item(), rel=1e-5)


def test_a_hint_is_that_of_the_tokens(rng, mask):
    s, t = (torch.randn(B, L, C, generator=rng) for _ in range(2))
    value = Hint()(features(s, mask), features(t, mask), None)
    assert value.item() == pytest.approx(F.mse_loss(s[mask], t[mask]).item(), rel=1e-6)


def test_tokens_beside_a_vector_are_averaged_without_padding(rng, mask):
    s, t = torch.randn(B, L, C, generator=rng), torch.randn(B, C, generator=rng)
    value = Hint()(features(s, mask), features(t, mask), None)
    mean = torch.stack([row[kept].mean(dim=0) for row, kept in zip(s, mask, strict=True)])
    assert value.item() == pytest.approx(F.mse_loss(mean, t).item(), rel=1e-6)

"""Rows: what counts of what a model returned, whatever the padding."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from compresskd.tasks import (
    Batch,
    CausalLM,
    Classification,
    MaskedLM,
    MultiLabel,
    Regression,
    TokenClassification,
    call,
    logits_of,
)

B, L, K = 3, 5, 7


@pytest.fixture
def logits():
    return torch.randn(B, L, K, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    targets = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(1))
    targets[1, 3:] = -100
    targets[2, 1] = -100
    return targets


def batch_of(targets, **options):
    ids = torch.zeros(len(targets), targets.shape[-1] if targets.ndim > 1 else 1, dtype=torch.long)
    return Batch({"input_ids": ids}, targets, torch.arange(len(targets)), view=0, **options)


def padded(tensor, by, value):
    return F.pad(tensor, (0, 0, 0, by) if tensor.ndim == 3 else (0, by), value=value)


@pytest.mark.parametrize("task", [TokenClassification(), MaskedLM(), CausalLM()], ids=lambda task: task.name)
def test_padding_changes_no_row(task, logits, targets):
    rows, of_rows = task.rows(logits, batch_of(targets))
    more, of_more = task.rows(padded(logits, 4, 9.0), batch_of(padded(targets, 4, -100)))
    assert torch.equal(rows.logits, more.logits)
    assert torch.equal(of_rows, of_more)
    assert torch.equal(rows.sample, more.sample)
    assert len(of_rows) == task.num_rows(batch_of(targets))


def test_tokens_without_a_label_are_no_rows(logits, targets):
    rows, of_rows = TokenClassification().rows(logits, batch_of(targets))
    assert of_rows.tolist() == [t for row in targets.tolist() for t in row if t != -100]
    assert rows.sample.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert torch.equal(rows.logits[5], logits[1, 0])


def test_a_position_predicts_the_next_token(logits, targets):
    rows, of_rows = CausalLM().rows(logits, batch_of(targets))
    assert torch.equal(of_rows[:4], targets[0, 1:])
    assert torch.equal(rows.logits[:4], logits[0, :-1])
    by_hand = F.cross_entropy(logits[:, :-1].reshape(-1, K), targets[:, 1:].reshape(-1), ignore_index=-100)
    assert CausalLM().label_loss(rows.logits, of_rows).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_weights_go_to_the_rows_of_their_sample(logits, targets):
    weights = torch.tensor([1.0, 2.0, 0.0])
    task = TokenClassification()
    rows, of_rows = task.rows(logits, batch_of(targets, weights=weights))
    assert torch.equal(rows.weights, weights[rows.sample])
    each = task.label_losses(rows.logits, of_rows)
    expected = (each * rows.weights).sum() / rows.weights.sum()
    assert task.label_loss(rows.logits, of_rows, weights=rows.weights).item() == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize(
    ("task", "targets", "right"),
    [
        (Classification(), torch.tensor([0, 1]), True),
        (Classification(), torch.tensor([0.5, 1.0]), False),
        (Classification(), torch.zeros(2, 3), False),
        (MultiLabel(), torch.tensor([[0.0, 1.0]]), True),
        (MultiLabel(), torch.tensor([[0.0, 2.0]]), False),
        (MultiLabel(), torch.tensor([0, 1]), False),
        (Regression(), torch.tensor([[0.5]]), True),
        (Regression(), torch.tensor([0, 1]), False),
    ],
    ids=["classes", "numbers", "matrix", "labels", "counts", "one label", "values", "classes of values"],
)
def test_targets_of_another_kind_are_told(task, targets, right):
    assert (task.faults(targets, 3) is None) == right


def test_what_holds_logits_is_found():
    logits = torch.zeros(2, 3)
    for output in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, "more")):
        assert logits_of(output) is logits
    with pytest.raises(TypeError, match="NoneType"):
        logits_of(None)


def test_a_model_is_called_by_the_names_of_its_arguments():
    assert call(lambda a, b: a - b, {"b": torch.tensor(1), "a": torch.tensor(3)}).item() == 2
    assert call(lambda x: x + 1, torch.tensor(1)).item() == 2


@pytest.mark.parametrize(
    ("bidirectional", "fault"), [(False, False), (True, True)], ids=["causal", "bidirectional"]
)
def test_a_language_model_that_sees_what_it_predicts_is_told(bidirectional, fault):
    def model(input_ids):
        states = F.one_hot(input_ids, K).float()
        return states.cumsum(1) + (states.sum(1, keepdim=True) if bidirectional else 0)

    ids = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(0))
    found = CausalLM().model_fault(model, Batch({"input_ids": ids}, ids, torch.arange(B), view=0))
    assert (found is not None) is fault


def test_tokens_need_more_than_one_target_a_sample():
    assert MaskedLM().faults(torch.zeros(4, dtype=torch.long), K) == "one class a sample"
    assert MaskedLM().faults(torch.zeros(4, L, dtype=torch.long), K) is None

"""Scores against those counted by hand."""

import pytest
import torch
import torch.nn.functional as F

from compresskd import progress
from compresskd.data.text.split import TextSplit, padded
from compresskd.tasks import TokenClassification
from compresskd.training import evaluate


def test_scores_equal_those_counted_by_hand(make_model, blobs):
    model = make_model()
    scores = evaluate(model, blobs.validation, batch_size=7, with_logits=True)
    model.eval()
    (batch,) = blobs.validation.batches(1000)
    with torch.no_grad():
        logits = model(batch.inputs)
    assert scores.accuracy == (logits.argmax(1) == batch.targets).double().mean().item()
    assert scores.loss == pytest.approx(F.cross_entropy(logits, batch.targets).item(), rel=1e-6)
    assert torch.equal(scores.predictions, logits.argmax(1))
    assert scores.predictions.dtype == torch.int64
    assert torch.allclose(scores.logits, logits, atol=1e-6)
    assert not scores.predictions.is_inference()


def test_the_batch_size_changes_nothing_but_speed(make_model, blobs):
    model = make_model()
    one, all_at_once = (evaluate(model, blobs.test, batch_size=size) for size in (1, 40))
    assert torch.equal(one.predictions, all_at_once.predictions)
    assert one.loss == pytest.approx(all_at_once.loss, rel=1e-6)
    assert one.logits is None


def test_it_tells_how_far_it_is(make_model, blobs, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", -1.0)
    said = []
    evaluate(make_model(), blobs.test, batch_size=16, note=said.append)
    count = -(-len(blobs.test) // 16)
    assert said == [f"test split, batches: {done} of {count}" for done in range(count)]


def test_every_module_gets_its_mode_back(make_model, blobs):
    model = make_model().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, blobs.validation, batch_size=16)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_is_scored_as_whoever_loads_it_runs_it(make_model, blobs):
    model = make_model()
    plain = evaluate(model, blobs.test, batch_size=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(model, blobs.test, batch_size=40)
        rough = model.eval()(next(iter(blobs.test.batches(40))).inputs)
    assert inside.loss == plain.loss
    assert rough.dtype == torch.bfloat16  # what the context would have done


@pytest.mark.parametrize("of_tokens", [False, True])
def test_scores_of_texts_are_in_the_order_of_the_split(of_tokens):
    """Texts of one length are scored together, and nobody sees it."""
    lengths = torch.randint(1, 12, (41,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(
        0, 97, (int(offsets[-1]),), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )
    targets = padded(ids % 4, offsets) if of_tokens else torch.arange(41) % 4
    split = TextSplit("test", {"input_ids": ids}, offsets, torch.arange(41), targets, "", {"input_ids": 1})
    table = torch.randn(97, 4, generator=torch.Generator().manual_seed(2))

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = table[input_ids]
            return logits if of_tokens else (logits * attention_mask[..., None]).sum(1)

    task = TokenClassification() if of_tokens else None
    scores = evaluate(Model(), split, task, batch_size=6, with_logits=True)
    rows = table[ids]
    expected = rows if of_tokens else torch.stack([part.sum(0) for part in rows.split(lengths.tolist())])
    right = expected.argmax(1) == (ids % 4 if of_tokens else targets)
    torch.testing.assert_close(scores.logits, expected)
    assert torch.equal(scores.predictions, expected.argmax(1))
    assert scores.values["accuracy"] == pytest.approx(right.double().mean().item())
    of_samples = (
        [part.float().mean() for part in right.split(lengths.tolist())] if of_tokens else right.float()
    )
    torch.testing.assert_close(scores.of_samples, torch.as_tensor(of_samples))

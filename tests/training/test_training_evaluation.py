"""Scores against those counted by hand."""

import pytest
import torch
import torch.nn.functional as F

from compresskd import progress
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

"""The largest outputs of a teacher and the rest as one: exact on their outcomes, read back by position."""

import pytest
import torch
import torch.nn.functional as F

from compresskd.kd.decoupled import DKD
from compresskd.kd.logits import CrossEntropy, LogitMSE, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.kd.packed import pack
from compresskd.stages.packed_outputs import stored
from compresskd.tasks import ModelOutputs


def logits(rows=6, classes=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, classes, generator=generator) * 3 for _ in range(2)]


def merged(x, index, temperature):
    """Probabilities [N, k + 1] of the named outcomes and of all others together."""
    p = (x / temperature).softmax(1)
    named = p.gather(1, index)
    return torch.cat([named, 1 - named.sum(1, keepdim=True)], 1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_the_merged_outcomes(temperature):
    s, t = logits()
    top = pack(t, 5, (temperature,))
    p, q = merged(t, top.index, temperature), merged(s, top.index, temperature)
    wanted = (p * (p / q).log()).sum(1).mean() * temperature**2
    term = SoftTargets(temperature=temperature)
    found = term(ModelOutputs(s), ModelOutputs(top.values, top=top), torch.zeros(6))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert found <= term(ModelOutputs(s), ModelOutputs(t), torch.zeros(6)) + 1e-5  # merging loses information


def test_all_outputs_but_one_are_the_whole_divergence():
    s, t = logits()
    s.requires_grad_()
    top = pack(t, 19, (4.0,))
    pair = [SoftTargets()(ModelOutputs(s), teacher, torch.zeros(6)) for teacher in (
        ModelOutputs(t), ModelOutputs(top.values, top=top))]  # fmt: skip
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(each, s)[0] for each in pair), rtol=1e-3, atol=1e-6)


def test_outputs_of_another_temperature_are_refused():
    s, t = logits()
    top = pack(t, 5, (2.0,))
    with pytest.raises(ValueError, match=r"4\.0"):
        SoftTargets()(ModelOutputs(s), ModelOutputs(top.values, top=top), torch.zeros(6))


def test_terms_that_need_all_outputs_are_named():
    terms = {
        "a": SoftTargets(),
        "b": SoftTargets(standardize=True),
        "c": DKD(),
        "d": LogitMSE(),
        "e": CrossEntropy(),
    }
    assert [error.field for error in Objective(terms).packed_faults()] == ["terms.b", "terms.c", "terms.d"]
    assert Objective(terms).temperatures == (4.0,)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (16, 0.01), (32, 0.0)])
def test_rows_are_read_back_by_the_position_of_their_sample(tmp_path, bits, error):
    _, t = logits(rows=9)
    counts = torch.tensor([2, 0, 4, 1, 2])
    parts = [(pack(t[:6], 4, (1.0, 4.0)), counts[:3]), (pack(t[6:], 4, (1.0, 4.0)), counts[3:])]
    kept = stored(tmp_path / "here" / "it", iter(parts), (1.0, 4.0), bits=bits)
    found, whole = kept.of(torch.tensor([3, 0, 4, 1])), pack(t, 4, (1.0, 4.0))
    rows = torch.tensor([6, 0, 1, 7, 8])
    assert torch.equal(found.index, whole.index[rows])
    torch.testing.assert_close(found.values, whole.values[rows], rtol=0, atol=error)
    for temperature in (1.0, 4.0):
        assert torch.equal(found.rest[temperature], whole.rest[temperature][rows])

    def never():
        raise AssertionError("they are there already")
        yield

    again = stored(tmp_path / "here" / "it", never(), (1.0, 4.0), bits=bits)
    assert torch.equal(again.of(torch.tensor([2])).index, whole.index[2:6])


def test_every_outcome_keeps_its_share_in_eight_bits(tmp_path):
    s, t = logits(rows=200, classes=50)
    kept = stored(tmp_path / "it", [(pack(t, 10, (4.0,)), torch.ones(200).long())], (4.0,), bits=8)
    top = kept.of(torch.arange(200))
    exact, packed = (
        SoftTargets()(ModelOutputs(s), ModelOutputs(each.values, top=each), torch.zeros(200))
        for each in (pack(t, 10, (4.0,)), top)
    )
    torch.testing.assert_close(packed, exact, rtol=1e-3, atol=1e-4)
    assert F.softmax(top.values, 1).isfinite().all()

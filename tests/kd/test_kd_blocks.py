"""Terms on the blocks of transformers: which blocks and projections are compared, and what the relations are."""

import math

import pytest
import torch
from kd_nets import Attending, Net, Tokens, bind, step
from refusals import says
from small_architectures import build
from small_architectures import inputs as example_of

from compresskd.kd.features import Hint
from compresskd.kd.objective import Objective
from compresskd.kd.relations import AttentionRelations
from compresskd.tasks import ModelOutputs

LAYERS = Hint(1.0, match="layers")


def pairs_of(term, student, teacher, example):
    return Objective({"feature": term}).bind(student, teacher, example).pairs["feature"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_blocks_are_spread_over_those_of_the_teacher(depth, inputs):
    found = pairs_of(LAYERS, Attending(depth=depth), Attending(depth=4), inputs[:2])
    spread = {1: [3], 2: [1, 3], 3: [0, 2, 3], 4: [0, 1, 2, 3]}[depth]
    blocks = {f"blocks.{i}": f"blocks.{j}" for i, j in enumerate(spread)}
    assert found == {"norm": "norm", **blocks}


def test_a_network_of_several_stacks_is_compared_stack_by_stack(inputs):
    found = pairs_of(LAYERS, Net(depth=2), Net(depth=4, width=6), inputs[:2])
    stages = {f"layer{n}.{i}": f"layer{n}.{2 * i + 1}" for n in (1, 2) for i in (0, 1)}
    assert found == {"conv1": "conv1", **stages}


def test_narrower_blocks_are_projected_and_all_of_it_learns(inputs, targets):
    student, teacher = Attending(width=4), Attending(width=6, depth=4)
    bound = bind(LAYERS, student, teacher, inputs)
    total, parts = step(bound, student, teacher, inputs, targets)
    total.backward()
    assert parts["feature"] > 0
    assert all(p.grad.abs().sum() > 0 for p in bound.parameters())


def test_blocks_of_no_stack_are_refused(inputs):
    with pytest.raises(ValueError, match=says("terms.feature.match", "pairs=")):
        pairs_of(LAYERS, Tokens(), Tokens(), inputs[:2])


SEPARATE = "query", "key", "value"


@pytest.mark.parametrize(
    ("name", "entering", "last", "attention", "projections"),
    [
        ("bert", "bert.embeddings", "bert.encoder.layer.1", "attention.self", SEPARATE),
        ("distilbert", "distilbert.embeddings", "distilbert.transformer.layer.1", "attention",
         ("q_lin", "k_lin", "v_lin")),
        ("gpt2", "transformer.drop", "transformer.h.1", "attn", ("c_attn",)),
        ("llama", "model.embed_tokens", "model.layers.1", "self_attn", ("q_proj", "k_proj", "v_proj")),
    ],
    ids=["bert", "distilbert", "gpt2", "llama"],
)  # fmt: skip
def test_transformers(name, entering, last, attention, projections):
    model, example = build(name), example_of(name)
    by_layer = list(pairs_of(LAYERS, model, model, example))
    assert (by_layer[0], by_layer[-1]) == (f"model.{entering}", f"model.{last}")
    found = pairs_of(AttentionRelations(), model, model, example)
    assert list(found) == [f"model.{last}.{attention}.{name}" for name in projections]


def test_relations_are_those_of_the_paper():
    generator = torch.Generator().manual_seed(3)
    s, t = torch.randn(2, 5, 32, generator=generator), torch.randn(2, 5, 64, generator=generator)
    term = AttentionRelations(heads=2)
    value = term(
        ModelOutputs(torch.zeros(2, 3), {"query": s}), ModelOutputs(torch.zeros(2, 3), {"query": t}), None
    )
    expected = 0.0
    for a, b in zip(s.double(), t.double(), strict=True):
        for head in range(2):
            x, y = a[:, 16 * head :][:, :16], b[:, 32 * head :][:, :32]
            p, q = (y @ y.T / math.sqrt(32)).softmax(1), (x @ x.T / math.sqrt(16)).softmax(1)
            expected += (p * (p / q).log()).sum().item()
    assert value.item() == pytest.approx(expected / (2 * 2 * 5), rel=1e-4)


def test_one_layer_for_all_three_is_cut_into_thirds():
    separate = ["block.query", "block.key", "block.value"]
    generator = torch.Generator().manual_seed(3)
    ours, theirs = ({name: torch.randn(2, 5, 16, generator=generator) for name in separate} for _ in range(2))
    logits = torch.zeros(2, 3)
    one, other = (torch.cat(list(side.values()), dim=-1) for side in (ours, theirs))
    whole = AttentionRelations()(ModelOutputs(logits, ours), ModelOutputs(logits, theirs), None)
    cut = AttentionRelations()(
        ModelOutputs(logits, {"block.qkv": one}), ModelOutputs(logits, {"block.qkv": other}), None
    )
    assert cut.item() == pytest.approx(whole.item(), rel=1e-6)
    assert whole.item() > 0


@pytest.mark.parametrize("fused", [False, True])
def test_relations_pull_the_projections(fused, inputs, targets):
    student, teacher = Attending(4, fused=fused), Attending(6, depth=4, fused=fused)
    bound = bind(AttentionRelations(), student, teacher, inputs)
    step(bound, student, teacher, inputs, targets)[0].backward()
    last = student.blocks[-1].attention
    assert (last.c_attn if fused else last.value).weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("term", "fault"),
    [
        (AttentionRelations(block=4), says("terms.feature.block", "4", "0 to 3")),
        (AttentionRelations(heads=3), says("terms.feature.pairs", "heads", "3", "a divisor of 4")),
    ],
    ids=["block", "heads"],
)
def test_what_the_models_cannot_give_is_refused(term, fault, inputs):
    with pytest.raises(ValueError, match=fault):
        pairs_of(term, Attending(), Attending(depth=4), inputs[:2])


def test_a_model_without_known_projections_is_refused(inputs):
    with pytest.raises(ValueError, match=says("terms.feature.pairs", "queries")):
        pairs_of(AttentionRelations(), Net(), Net(), inputs[:2])

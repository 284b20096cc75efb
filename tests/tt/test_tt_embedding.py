import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresskd.tt import TTEmbedding, from_structure


@st.composite
def embeddings(draw):
    d = draw(st.integers(1, 4))
    dims = st.lists(st.integers(1, 5), min_size=d, max_size=d)
    vocabulary_dims, embedding_dims = draw(dims), draw(dims)
    torch.manual_seed(draw(st.integers(0, 99)))
    V = max(1, torch.tensor(vocabulary_dims).prod().item() - draw(st.integers(0, 2)))
    D = max(1, torch.tensor(embedding_dims).prod().item() - draw(st.integers(0, 1)))
    padding_idx = draw(st.one_of(st.none(), st.integers(0, V - 1)))
    return TTEmbedding(
        V,
        D,
        vocabulary_dims,
        embedding_dims,
        draw(st.integers(1, 4)),
        padding_idx=padding_idx,
        dtype=torch.float64,
    )


@pytest.mark.slow
@given(embeddings(), st.lists(st.integers(0, 4), max_size=3))
@settings(max_examples=60, deadline=None)
def test_equals_a_gather_from_the_dense_table(layer, shape):
    ids = torch.randint(0, layer.num_embeddings, shape)
    table = layer.to_dense()
    y = layer(ids)
    assert y.shape == (*shape, layer.embedding_dim)
    assert torch.allclose(y, table[ids], rtol=0, atol=1e-10)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(table[ids], list(layer.cores), grad)
    for core, core_grad in zip(torch.autograd.grad(y, list(layer.cores), grad), expected, strict=True):
        assert torch.allclose(core, core_grad, rtol=0, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(layer(ids.int()), table[ids], rtol=0, atol=1e-10)


def test_from_dense_is_exact_at_full_rank_and_keeps_the_padding_row_zero():
    dense = nn.Embedding(30, 12, padding_idx=3, dtype=torch.float64)
    layer = TTEmbedding.from_dense(dense, (5, 3, 2), (2, 2, 3))
    ids = torch.arange(30)
    assert torch.allclose(layer(ids), dense(ids), rtol=0, atol=1e-10)
    assert float(layer(ids)[3].detach().abs().max()) == 0.0


def test_sparse_gradients_of_the_looked_up_core():
    layer = TTEmbedding(50, 8, (50, 1), (1, 8), 4, sparse=True)
    dense = copy.deepcopy(layer)
    dense.sparse = False
    ids = torch.tensor([3, 3, 7])
    layer(ids).square().sum().backward()
    dense(ids).square().sum().backward()
    assert layer.cores[0].grad.is_sparse
    assert torch.allclose(layer.cores[0].grad.to_dense(), dense.cores[0].grad, atol=1e-6)
    assert torch.allclose(layer.cores[1].grad, dense.cores[1].grad, atol=1e-6)
    before = layer.cores[0].detach().clone()
    torch.optim.SparseAdam([layer.cores[0]], lr=0.1).step()
    changed = (layer.cores[0] != before).flatten(2).any(2)[0].nonzero().flatten().tolist()
    assert changed == [3, 7]


def test_inference_keeps_small_tables_and_follows_changes():
    layer = TTEmbedding(1000, 64, (10, 10, 10), (4, 4, 4), 4).eval()
    ids = torch.randint(0, 1000, (20,))
    with torch.no_grad():
        assert torch.allclose(layer(ids), layer.to_dense()[ids], atol=1e-5)
        assert 0 < layer.inference_bytes < 4 * 1000 * 64 / 2
        layer.cores[1].mul_(2.0)
        assert torch.allclose(layer(ids), layer.to_dense()[ids], atol=1e-5)


def test_structure_copies_and_gauges():
    layer = TTEmbedding(100, 12, (5, 20), (4, 3), 3, padding_idx=-1)
    assert layer.padding_idx == 99
    ids = torch.arange(100)
    empty = from_structure(layer.structure())
    empty.load_state_dict(layer.state_dict())
    for other in (empty, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(ids), layer(ids))
    for other in (layer.balance(), layer.orthogonalize(0), layer.round(tolerance=1e-6)):
        assert torch.allclose(other(ids), layer(ids), atol=1e-4)
    assert "vocabulary_dims=(5, 20)" in repr(layer)
    assert layer.num_parameters_dense == 1200


def test_fresh_tables_have_unit_variance():
    ratios = [float(TTEmbedding(256, 64, (4, 64), (16, 4), 8).to_dense().detach().var()) for _ in range(30)]
    assert sum(ratios) / 30 == pytest.approx(1.0, abs=0.3)


def test_bad_ids_and_sizes_are_refused():
    layer = TTEmbedding(10, 4, (2, 5), (2, 2), 2)
    with pytest.raises(IndexError, match="ids from 0 to 9, got 0 to 10"):
        layer(torch.tensor([0, 10]))
    with pytest.raises(IndexError, match="got -1"):
        layer(torch.tensor([-1]))
    with pytest.raises(ValueError, match="padding_idx within 10"):
        TTEmbedding(10, 4, (2, 5), (2, 2), 2, padding_idx=10)

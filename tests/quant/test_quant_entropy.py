import math
import sys

import pytest
import torch
from torch import nn

from compresskd.quant.entropy import decode, encode, entropy_bits
from compresskd.quant.entropy_penalty import entropy_penalty, soft_entropy
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.frequencies import best_frequencies, read_frequencies
from compresskd.quant.granularity import PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import QuantSpec, prepare

pytest.importorskip("constriction", reason="constriction, the entropy coder, is not installed")

GRIDS = [Grid(b, kind) for kind in ("symmetric", "affine", "half_integer") for b in (2, 3, 4, 8)]
GRIDS.append(Grid(2, "ternary"))


def tensors_of(grid, sizes, generator):
    return [
        quantize_tensor(torch.randn(size, generator=generator) ** 3, grid, PerTensor(), method="absmax")
        for size in sizes
    ]


def read_back(data, tensors):
    return decode(data, [t.shape for t in tensors], [t.grid for t in tensors])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_round_trip_is_exact(grid):
    tensors = tensors_of(grid, [(1,), (3, 5), (40, 50), (7,)], torch.Generator().manual_seed(0))
    for integers, tensor in zip(read_back(encode(tensors), tensors), tensors, strict=True):
        assert torch.equal(integers, tensor.integers)
        assert integers.dtype == torch.int8


def test_grids_may_be_mixed_and_constant_or_empty_tensors_cost_next_to_nothing():
    generator = torch.Generator().manual_seed(1)
    tensors = [tensor for grid in GRIDS for tensor in tensors_of(grid, [(100,), (1000,)], generator)]
    for integers, tensor in zip(read_back(encode(tensors), tensors), tensors, strict=True):
        assert torch.equal(integers, tensor.integers)
    one = torch.ones(1, dtype=torch.float16)
    constant = QuantizedTensor(torch.full((5000,), 3, dtype=torch.int8), one, None, Grid(4), PerTensor())
    empty = QuantizedTensor(torch.zeros(0, dtype=torch.int8), one, None, Grid(4), PerTensor())
    data = encode([constant, empty])
    assert len(data) < 40
    assert [t.numel() for t in read_back(data, [constant, empty])] == [5000, 0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stream_with_its_table_is_close_to_the_entropy_and_never_above_packed(grid):
    tensors = tensors_of(grid, [(6000,)], torch.Generator().manual_seed(2))
    ideal = entropy_bits(tensors[0].integers) / 8
    size = len(encode(tensors))
    assert size <= 1.06 * ideal + 16 + grid.num_levels // 2
    uniform = torch.randint(grid.low, grid.high + 1, (6000,), generator=torch.Generator().manual_seed(3))
    flat = QuantizedTensor(
        uniform.to(torch.int8),
        torch.ones(1).half(),
        torch.zeros(1, dtype=torch.int8) if grid.has_zero_point else None,
        grid,
        PerTensor(),
    )
    assert len(encode([flat])) <= grid.packed_bytes(6000) + 1


def test_models_are_read_with_the_numbers_they_were_written_with():
    generator = torch.Generator().manual_seed(4)
    seen = set()
    for grid in GRIDS:
        for tensor in tensors_of(grid, [(50,), (20000,)], generator):
            codes = tensor.integers.long() - grid.low
            best = best_frequencies(torch.bincount(codes, minlength=grid.num_levels).numpy())
            again = read_frequencies(best.model, best.parameters, grid.num_levels)
            assert (again.probabilities == best.probabilities).all()
            assert best.probabilities.sum() == pytest.approx(1)
            seen.add(best.model)
    assert len(seen) >= 3


def test_tensors_alike_share_one_model():
    generator = torch.Generator().manual_seed(8)
    tensors = tensors_of(Grid(4), [(300,)] * 6, generator)
    apart = sum(len(encode([tensor])) for tensor in tensors)
    together = encode(tensors)
    assert together[0] // 8 == 5
    assert apart - len(together) > 2 * 5
    for integers, tensor in zip(read_back(together, tensors), tensors, strict=True):
        assert torch.equal(integers, tensor.integers)


def test_damaged_streams_are_refused():
    tensors = tensors_of(Grid(4), [(400,), (300,)], torch.Generator().manual_seed(5))
    data = encode(tensors)
    for damaged, words in (
        (b"", "ends after 0 bytes"),
        (b"\x07" + data[1:], "byte 0 is damaged: there is no model of frequencies number 7"),
        (b"\x79" + data[1:], "byte 0 is damaged: 16 tensors cannot share a model there"),
        (data[:2], "bytes at least"),
        (data[:-1], "does not end where its tensors do"),
        (data + b"\0", "ends in a zero byte"),
    ):
        with pytest.raises(ValueError, match=words):
            read_back(damaged, tensors)
    with pytest.raises(ValueError, match="does not end where its tensors do"):
        decode(data, [(400,), (299,)], [Grid(4), Grid(4)])


def test_soft_entropy_is_exact_on_levels_and_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(6)
    for grid in (Grid(2, "half_integer"), Grid(3), Grid(2, "ternary")):
        integers = torch.randint(grid.low, grid.high + 1, (500,), generator=generator)
        weight = (integers.float() + grid.shift) * 0.25
        quant = FakeQuant(weight, grid)
        scale = torch.tensor([0.25], dtype=torch.float16)
        value = soft_entropy(weight, scale, None, quant)
        assert value.item() == pytest.approx(entropy_bits(integers) / 500, rel=1e-5)
        w = torch.rand(50, generator=generator) * 0.4 - 0.2
        w.requires_grad_()
        soft_entropy(w, scale, None, quant).backward()
        for i in (0, 17, 49):
            step = torch.zeros(50)
            step[i] = 1e-2
            with torch.no_grad():
                above, below = (soft_entropy(w + s, scale, None, quant) for s in (step, -step))
            assert w.grad[i].item() == pytest.approx(((above - below) / 2e-2).item(), rel=0.05, abs=2e-3)


def test_penalty_lowers_the_coded_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40))
    quant = prepare(model, QuantSpec(bits=4, granularity=PerTensor()))["0.weight"]
    original = model[0].parametrizations.weight.original
    before = len(encode([quant.convert(original)]))
    bits = entropy_penalty(model).item()
    assert 2 < bits < math.log2(16)
    optimizer = torch.optim.Adam([original], 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        entropy_penalty(model).backward()
        optimizer.step()
    assert entropy_penalty(model).item() < 0.8 * bits
    assert len(encode([quant.convert(original)])) < 0.85 * before


def test_penalty_needs_a_prepared_model():
    with pytest.raises(ValueError, match="call prepare first"):
        entropy_penalty(nn.Linear(2, 2))


def test_missing_coder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    tensors = tensors_of(Grid(4), [(400,)], torch.Generator().manual_seed(7))
    with pytest.raises(ImportError, match="pip install constriction"):
        encode(tensors)

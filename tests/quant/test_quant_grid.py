import pytest
import torch

from compresskd.quant.granularity import (
    PerChannel,
    PerGroup,
    PerRankSlice,
    PerTensor,
    granularity_from_plain,
)
from compresskd.quant.grid import Grid, dequantize, fake_quantize, quantize
from compresskd.quant.pack import QuantizedTensor, pack, payload_bytes, quantize_tensor, unpack
from compresskd.quant.scale import find_scale, mse_scale

GRIDS = [Grid(b, kind) for kind in ("symmetric", "affine", "half_integer") for b in (2, 3, 4, 8)]
GRIDS.append(Grid(2, "ternary"))
GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(-1),
    PerGroup(5),
    PerGroup(32),
    PerRankSlice("first"),
    PerRankSlice("last"),
]
SHAPES = {"linear": (7, 12), "conv": (6, 3, 3, 3), "embedding": (11, 5), "core": (4, 3, 5, 6), "vector": (9,)}


def random_weight(shape, generator):
    spread = 10.0 ** torch.empty(1).uniform_(-4, 2, generator=generator)
    w = torch.randn(shape, generator=generator) * spread
    tails = torch.rand(shape, generator=generator) < 0.02
    return torch.where(tails, w * 20, w)


@pytest.mark.slow
def test_fake_quantize_equals_quantize_pack_store_unpack_dequantize_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    cases = [
        (grid, granularity, shape)
        for grid in GRIDS
        for granularity in GRANULARITIES
        for name, shape in SHAPES.items()
        if len(shape) == 4 or not isinstance(granularity, PerRankSlice)
    ]
    for case in range(max(1000, len(cases))):
        grid, granularity, shape = cases[case % len(cases)]
        w = random_weight(shape, generator)
        scale, zero_point = find_scale(w, grid, granularity, "absmax" if case % 3 else "mse")
        integers = quantize(w, scale, zero_point, grid, granularity)
        data = QuantizedTensor(integers, scale, zero_point, grid, granularity).to_bytes()
        reloaded = QuantizedTensor.from_bytes(data, shape, grid, granularity)
        expected = fake_quantize(w, scale, zero_point, grid, granularity)
        assert len(data) == payload_bytes(shape, grid, granularity)
        assert torch.equal(reloaded.integers, integers)
        assert torch.equal(reloaded.dequantize(), expected), (grid, granularity, shape)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "affine"])
def test_integers_and_values_equal_torchao(bits, kind):
    primitives = pytest.importorskip(
        "torchao.quantization.quant_primitives", reason="torchao, the oracle, is not installed"
    )
    generator = torch.Generator().manual_seed(bits)
    grid = Grid(bits, kind)
    for granularity, block in ((PerTensor(), (16, 24)), (PerChannel(0), (1, 24)), (PerGroup(8), (1, 8))):
        for method in ("absmax", "mse"):
            w = random_weight((16, 24), generator)
            scale, zero_point = find_scale(w, grid, granularity, method)
            zeros = torch.zeros(len(scale), dtype=torch.int32) if zero_point is None else zero_point.int()
            theirs = primitives.quantize_affine(
                w, block, scale.float(), zeros, torch.int8, grid.low, grid.high
            )
            ours = quantize(w, scale, zero_point, grid, granularity)
            assert torch.equal(ours, theirs)
            read = primitives.dequantize_affine(
                theirs, block, scale.float(), zeros, torch.int8, grid.low, grid.high
            )
            assert torch.equal(dequantize(ours, scale, zero_point, grid, granularity), read)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_absmax_scale_is_that_of_torchao_rounded_to_float16(bits):
    primitives = pytest.importorskip(
        "torchao.quantization.quant_primitives", reason="torchao, the oracle, is not installed"
    )
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    for kind, mapping in (("symmetric", "SYMMETRIC"), ("affine", "ASYMMETRIC")):
        grid = Grid(bits, kind)
        theirs, _ = primitives.choose_qparams_affine(
            w, primitives.MappingType[mapping], (1, 40), torch.int8, grid.low, grid.high
        )
        ours, _ = find_scale(w, grid, PerChannel(0), "absmax")
        assert torch.equal(ours, theirs.reshape(-1).half())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_mse_scale_is_never_worse_than_absmax_and_near_the_best_of_a_fine_search(grid):
    w = torch.randn(2000, generator=torch.Generator().manual_seed(2))

    def error(scale, zero_point):
        return (fake_quantize(w, scale, zero_point, grid, PerTensor()) - w).square().sum().item()

    scale, zero_point = mse_scale(w, grid, PerTensor())
    largest, zero = find_scale(w, grid, PerTensor(), "absmax")
    assert error(scale, zero_point) <= error(largest, zero)
    fine = min(error(largest * ratio, zero_point) for ratio in torch.linspace(0.02, 1.2, 400))
    assert error(scale, zero_point) <= 1.03 * fine


def test_levels_of_the_grids():
    one = torch.ones(1, dtype=torch.float16)
    w = torch.tensor([-9.0, -1.2, -0.4, 0.0, 0.4, 0.6, 1.2, 9.0])
    values = {
        grid: fake_quantize(w, one, None, grid, PerTensor()).tolist()
        for grid in (Grid(2), Grid(2, "half_integer"), Grid(2, "ternary"))
    }
    assert values[Grid(2)] == [-2, -1, 0, 0, 0, 1, 1, 1]
    assert values[Grid(2, "half_integer")] == [-1.5, -1.5, -0.5, 0.5, 0.5, 0.5, 1.5, 1.5]
    assert values[Grid(2, "ternary")] == [-1, -1, 0, 0, 0, 1, 1, 1]


def test_affine_grid_represents_zero_exactly_and_uses_a_one_sided_range():
    w = torch.rand(500, generator=torch.Generator().manual_seed(3)) + 0.01
    w[0] = 0.0
    tensor = quantize_tensor(w, Grid(4, "affine"), PerTensor(), method="absmax")
    assert tensor.dequantize()[0] == 0
    assert tensor.integers.unique().numel() == 16


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 8, 1001])
def test_pack_takes_the_exact_bytes_and_round_trips(grid, count):
    integers = torch.randint(
        grid.low, grid.high + 1, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.int8
    )
    data = pack(integers, grid)
    assert len(data) == (-(-count // 5) if grid.kind == "ternary" else -(-count * grid.bits // 8))
    assert torch.equal(unpack(data, count, grid), integers)


def test_packed_layout_is_little_endian():
    assert pack(torch.tensor([-4, -3, 3], dtype=torch.int8), Grid(3)) == bytes([0b11001000, 0b1])
    assert pack(torch.tensor([1, -1, -1, -1, 0], dtype=torch.int8), Grid(2, "ternary")) == bytes([2 + 81])


def test_payload_of_known_size():
    shape = (4, 3, 5, 6)
    assert payload_bytes(shape, Grid(3), PerTensor()) == 135 + 2
    assert payload_bytes(shape, Grid(3, "affine"), PerRankSlice("last")) == 135 + 12 + 3
    assert payload_bytes(shape, Grid(4), PerGroup(32)) == 180 + 2 * 12
    assert payload_bytes(shape, Grid(2, "ternary"), PerTensor()) == 72 + 2


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_granularities_survive_a_manifest_and_agree_with_a_loop(granularity):
    assert granularity_from_plain(granularity.plain()) == granularity
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(4))
    count = granularity.num_scales(x.shape)
    labels = granularity.expand(torch.arange(count), x.shape).expand(x.shape)
    assert torch.equal(granularity.amax(x), torch.stack([x[labels == i].max() for i in range(count)]))
    totals = torch.stack([x[labels == i].sum() for i in range(count)])
    torch.testing.assert_close(granularity.total(x), totals, rtol=1e-5, atol=1e-5)


def test_zero_weights_stay_zero_and_extreme_ones_stay_finite():
    zero = quantize_tensor(torch.zeros(3, 3), Grid(4), PerChannel(0)).dequantize()
    assert torch.equal(zero, torch.zeros(3, 3))
    huge = quantize_tensor(torch.tensor([1e30, -1e30]), Grid(4), PerTensor()).dequantize()
    assert torch.isfinite(huge).all()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Grid(5), "bits: got 5, expected 2, 3, 4, 8"),
        (lambda: Grid(True), "bits: got true, expected 2, 3, 4, 8"),
        (lambda: Grid(4, "asymmetric"), "grid: got 'asymmetric', expected"),
        (lambda: Grid(4, "ternary"), "grid: got 'ternary', expected"),
        (lambda: PerGroup(0), "size: got 0, expected >= 1"),
        (lambda: PerRankSlice("middle"), "side: got 'middle', expected first, last"),
        (lambda: PerRankSlice().num_scales((3, 4)), r"write PerChannel\(dim=0\)"),
        (lambda: PerChannel(2).num_scales((3, 4)), "dim must be within -2..1"),
        (
            lambda: granularity_from_plain(["per_row"]),
            r"granularity: got .* expected \['per_tensor'\], \['per_channel', dim\], ",
        ),
        (
            lambda: find_scale(torch.ones(2), Grid(4), PerTensor(), "max"),
            "initial_scale: got 'max', expected mse, absmax",
        ),
        (lambda: find_scale(torch.tensor([torch.nan]), Grid(4), PerTensor()), "not finite"),
        (lambda: quantize(torch.ones(2), torch.ones(2), None, Grid(4), PerTensor()), "has 1 scales, got"),
        (
            lambda: quantize(torch.ones(2), torch.ones(1), None, Grid(4, "affine"), PerTensor()),
            "zero points of shape",
        ),
        (lambda: unpack(b"abc", 3, Grid(4)), "3 integers on .* take 2 bytes, got 3"),
        (lambda: unpack(b"\xff", 5, Grid(2, "ternary")), "a byte above 242"),
        (lambda: QuantizedTensor.from_bytes(b"", (3,), Grid(4), PerTensor()), "takes 4 bytes, got 0"),
    ],
)
def test_errors_say_what_is_wrong(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_integers_outside_the_grid_are_refused():
    with pytest.raises(ValueError, match="1 integers lie outside"):
        QuantizedTensor(
            torch.tensor([3, 1], dtype=torch.int8), torch.ones(1).half(), None, Grid(2), PerTensor()
        )
    with pytest.raises(TypeError, match="int8 integers and float16 scales"):
        QuantizedTensor(torch.tensor([3, 1]), torch.ones(1).half(), None, Grid(2), PerTensor())

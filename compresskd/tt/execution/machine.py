"""What a machine can do: this one, measured once for each device type, dtype and number of threads; or the reference
machine, whose numbers are data of the package, so that what follows from them is the same everywhere.

Two grids of products (one large, and many small of one batch) give time per multiply-add by shape, interpolated in
between; three sizes of matrix-vector product give the bandwidth of the caches and of memory; one tiny product gives
the cost of an operation. Half a second, kept in the process and on disk.
"""

import json
import math
import os
import platform
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch

from compresskd.tt.execution.eager import undisturbed

LAYOUT_VERSION = 3
MM_ROWS, MM_INNER, MM_COLUMNS = (1, 4, 16, 64, 256, 1024), (4, 16, 64, 256, 1024), (4, 16, 64, 256, 1024)
BMM_ROWS, BMM_INNER, BMM_COLUMNS = (4, 16, 64, 256, 1024), (4, 16, 64, 256), (16, 64, 256, 1024)
GEMV_BYTES = (1 << 18, 1 << 22, 1 << 26)
GEMV_LIMITS = (1 << 20, 1 << 24)
FRESH_BYTES, FRESH_LIMIT = 36 << 20, 1 << 25
TURN_ROWS, TURN_COLUMNS = 64, 1024
WORK = 1 << 17
MAX_WORK = 1 << 23
ROUNDS, REPEATS = 3, 2
WORST_STEP = 1.5
REFERENCE = Path(__file__).with_name("reference.json")  # made by benchmarks/tt_reference.py

Plane = list[list[float]]
Grid = list[Plane]


@dataclass(frozen=True, eq=False)
class Machine:
    """Seconds per multiply-add on the grids, bytes per second by size of operand, seconds per operation.

    `turn` is the seconds per number of a transposing copy, `fresh` the seconds per byte of a result so large that its
    memory comes new from the system.
    """

    mm: Grid
    bmm: Grid
    bandwidth: list[float]
    operation: float
    turn: float
    fresh: float

    def mm_seconds(self, rows: int, inner: int, columns: int, *, itemsize: int = 4) -> float:
        """One product [rows, inner] x [inner, columns], columns being those of a weight."""
        work = rows * inner * columns
        rate = _mm_rate(self, rows, inner, columns)
        size = itemsize * (rows * inner + inner * columns + rows * columns)
        return max(work * rate, self.bytes_seconds(size)) + self.operation

    def bmm_seconds(self, batch: int, rows: int, inner: int, columns: int, *, itemsize: int = 4) -> float:
        """One matrix [rows, inner] on `batch` matrices [inner, columns]."""
        work = batch * rows * inner * columns
        rate = _bmm_rate(self, rows, inner, columns)
        size = itemsize * (rows * inner + batch * columns * (inner + rows))
        return max(work * rate, self.bytes_seconds(size)) + self.operation

    def copy_seconds(self, elements: int, *, itemsize: int = 4) -> float:
        """One pass that reads and writes so many elements, in runs that stay together."""
        return 3 * self.bytes_seconds(itemsize * elements) + self.operation

    def turn_seconds(self, elements: int) -> float:
        """One pass that transposes so many elements."""
        return elements * self.turn + self.operation

    def spill_seconds(self, size: float) -> float:
        """What writing and reading again an intermediate of `size` bytes takes beyond the products' own time."""
        if size > FRESH_LIMIT:
            return size * self.fresh + self.bytes_seconds(size)
        return 2 * self.bytes_seconds(size) if size > GEMV_LIMITS[0] else 0.0

    def bytes_seconds(self, size: float) -> float:
        """Reading `size` bytes from where an operand of that size lives."""
        return size / self.bandwidth[bisect_right(GEMV_LIMITS, size)]


@lru_cache(maxsize=1 << 16)
def _mm_rate(on: Machine, rows: int, inner: int, columns: int) -> float:
    return _interpolate(on.mm, (MM_ROWS, MM_INNER, MM_COLUMNS), (rows, inner, columns))


@lru_cache(maxsize=1 << 16)
def _bmm_rate(on: Machine, rows: int, inner: int, columns: int) -> float:
    return _interpolate(on.bmm, (BMM_ROWS, BMM_INNER, BMM_COLUMNS), (rows, inner, columns))


@lru_cache(maxsize=8)
def reference_machine(num_threads: int) -> Machine:
    """The machine that fixed plans are made for: of the numbers of threads that it was measured at, the nearest below.

    It is a processor in float32, and stands for every device and dtype.
    """
    measured = {int(threads): values for threads, values in json.loads(REFERENCE.read_text()).items()}
    return Machine(**measured[max(threads for threads in measured if threads <= max(1, num_threads))])


def machine(device_type: str, dtype: torch.dtype, num_threads: int) -> Machine:
    """The measured machine: from the process, from disk, or measured now and written there."""
    return _machine(device_type, str(dtype).removeprefix("torch."), num_threads)


@lru_cache(maxsize=64)
def _machine(device_type: str, dtype_name: str, num_threads: int) -> Machine:
    path = cache_directory() / f"{_key(device_type, dtype_name, num_threads)}.json"
    stored = _read(path)
    if stored is not None:
        return stored
    measured = measure(torch.device(device_type), getattr(torch, dtype_name))
    create_once(path, json.dumps(asdict(measured)))
    # Whoever wrote first wins, so that jobs started together plan alike.
    return _read(path) or measured


def cache_directory() -> Path:
    """`COMPRESSKD_CACHE`, else compresskd under the user's cache directory."""
    given = os.environ.get("COMPRESSKD_CACHE")
    if given:
        return Path(given) / "machine"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "compresskd" / "machine"


def _key(device_type: str, dtype_name: str, num_threads: int) -> str:
    name = torch.cuda.get_device_name() if device_type == "cuda" else f"{platform.machine()}-{processor()}"
    text = f"v{LAYOUT_VERSION}-{device_type}-{name}-{dtype_name}-{num_threads}-torch{torch.__version__}"
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def processor() -> str:
    """The name of the processor and of the instructions that torch uses on it: one name stands for several kinds."""
    return f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "cpu"


def _read(path: Path) -> Machine | None:
    try:
        return Machine(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def create_once(path: Path, text: str) -> None:
    """Create the file whole, unless it exists; a cache that cannot be written is no fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        try:
            os.link(file.name, path)
        finally:
            os.unlink(file.name)
    except OSError:
        return


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """The grids, bandwidths and operation cost of this device: the least over rounds spread in time."""
    new = partial(torch.ones, dtype=dtype, device=device)
    with undisturbed(grad=False):
        rounds = [_round(new, device, dtype.itemsize) for _ in range(ROUNDS)]
        fresh = _seconds(partial(new, FRESH_BYTES // dtype.itemsize), device, 1) / FRESH_BYTES
    mm, bmm, bandwidth, operation, turn = zip(*rounds, strict=True)
    least = [
        [[[min(v) for v in zip(*c, strict=True)] for c in zip(*r, strict=True)] for r in zip(*g, strict=True)]
        for g in (mm, bmm)
    ]
    return Machine(
        smoothed(least[0]),
        smoothed(least[1]),
        [max(values) for values in zip(*bandwidth, strict=True)],
        min(operation),
        min(turn),
        fresh,
    )


def _round(
    new: Callable[..., torch.Tensor], device: torch.device, itemsize: int
) -> tuple[Grid, Grid, list[float], float, float]:
    mm = [[[_mm(new, m, k, n, device) for n in MM_COLUMNS] for k in MM_INNER] for m in MM_ROWS]
    bmm = [[[_bmm(new, m, k, n, device) for n in BMM_COLUMNS] for k in BMM_INNER] for m in BMM_ROWS]
    bandwidth = []
    for size in GEMV_BYTES:
        side = math.isqrt(size // itemsize)
        W, x = new(side, side), new(1, side)
        bandwidth.append(size / _seconds(partial(torch.nn.functional.linear, x, W), device, 4))
    tiny, small, wide = new(1, 4), new(4, 4), new(TURN_ROWS, TURN_COLUMNS)
    operation = _seconds(partial(torch.mm, tiny, small), device, 64)
    turn = _seconds(lambda: wide.t().contiguous(), device, 4) / wide.numel()
    return mm, bmm, bandwidth, operation, turn


def smoothed(grid: Grid) -> Grid:
    """A larger product is hardly slower per multiply-add than a smaller one: the rest is a disturbed measurement."""
    smooth = [[list(row) for row in plane] for plane in grid]
    for i, j, k in product(*map(range, (len(grid), len(grid[0]), len(grid[0][0])))):
        below = [(i - 1, j, k), (i, j - 1, k), (i, j, k - 1)]
        least = min((smooth[x][y][z] for x, y, z in below if min(x, y, z) >= 0), default=math.inf)
        measured = smooth[i][j][k]
        # Products too large to be worth measuring take the rate of the largest that were.
        smooth[i][j][k] = least if math.isinf(measured) else min(measured, WORST_STEP * least)
    return smooth


def _mm(new: Callable[..., torch.Tensor], m: int, k: int, n: int, device: torch.device) -> float:
    x, W = new(m, k), new(n, k)
    if m * k * n > MAX_WORK:
        return math.inf
    calls = max(1, min(8, WORK // (m * k * n)))
    return _seconds(partial(torch.nn.functional.linear, x, W), device, calls) / (m * k * n)


def _bmm(new: Callable[..., torch.Tensor], m: int, k: int, n: int, device: torch.device) -> float:
    if 2 * m * k * n > MAX_WORK:
        return math.inf
    batch = max(2, min(64, 8 * WORK // (m * k * n)))
    z, G = new(batch, k, n), new(m, k)
    return _seconds(partial(torch.bmm, G.expand(batch, m, k), z), device, 1) / (batch * m * k * n)


def _seconds(run: Callable[[], object], device: torch.device, calls: int) -> float:
    """The least of a few times, each over `calls` calls."""
    run()
    best = math.inf
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def _interpolate(grid: Grid, axes: Sequence[Sequence[int]], point: Sequence[int]) -> float:
    """Log-linear in each of three axes, constant beyond their ends."""
    places = [_place(axis, value) for axis, value in zip(axes, point, strict=True)]
    total = 0.0
    for corner in product((0, 1), repeat=3):
        weight = math.prod(f if high else 1.0 - f for high, (_, f) in zip(corner, places, strict=True))
        if weight > 0.0:
            i, j, k = (low + high for high, (low, _) in zip(corner, places, strict=True))
            total += weight * math.log(grid[i][j][k])
    return math.exp(total)


def _place(axis: Sequence[int], value: int) -> tuple[int, float]:
    if value <= axis[0]:
        return 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 1, 0.0
    low = bisect_right(axis, value) - 1
    return low, math.log(value / axis[low]) / math.log(axis[low + 1] / axis[low])

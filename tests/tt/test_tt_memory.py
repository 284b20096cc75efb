"""Layers used as a library, in a process of their own that never saw the command line."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from compresskd import tt
torch.set_num_threads(1)
layer = tt.TTLinear(*{modes}, {rank})
x = torch.randn({rows}, layer.in_features, requires_grad=True)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    layer.zero_grad()
    x.grad = None
    layer(x).square().sum().backward()

for _ in range(5):
    step()
before = faults()
for _ in range(20):
    step()
print((faults() - before) / 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(
    ("modes", "rank", "rows"),
    [(((4, 196), (64, 4)), 16, 32), (((8, 16, 8), (8, 16, 8)), 4, 256)],
    ids=["small", "large"],
)
def test_a_training_step_maps_no_memory_anew(modes, rank, rows, tmp_path):
    # the large one took 450 pages and more of 4 KiB at each step when its blocks went back to the system; without
    # that it takes none to 110 here, by what the system made of the first steps
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(modes=modes, rank=rank, rows=rows)],
        env={**bare, "COMPRESSKD_CACHE": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 225

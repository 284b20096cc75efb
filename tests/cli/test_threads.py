"""How threads wait is set before torch is there to read it, and left to a user who says so."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from compresskd.cli import main
main(["--version"])
assert "torch" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
        ({"KMP_BLOCKTIME": "0"}, "None"),
    ],
)
def test_threads_wait_briefly_unless_told(said, found):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | said, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == found

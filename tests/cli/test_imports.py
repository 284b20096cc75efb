"""What a process loads: no more than its verb needs, and no compiler where nothing is compiled."""

import re
import shutil
from pathlib import Path

import pytest

STORED = Path(__file__).parents[1] / "stored_runs"
HEAVY = {"torch", "hydra", "omegaconf", "transformers", "scipy", "sklearn", "asyncio"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}


@pytest.fixture
def loaded(run_program):
    """Names of the modules that a command loads, in its process and in those that it starts."""

    def call(*arguments):
        outcome = run_program(*arguments, PYTHONPROFILEIMPORTTIME="1")
        assert outcome.status == 0, outcome.err
        return set(re.findall(r"^import time:[ \d|]+\| +(\S+)$", outcome.err, re.MULTILINE))

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["compare", "runs"],
        ["ls", "runs"],
        ["watch", "--once", "runs"],
    ],
    ids=" ".join,
)
def test_what_reads_records_waits_for_nothing_that_trains(arguments, loaded, work):
    record = next(STORED.rglob("record.json"))
    (work / "runs" / "one").mkdir(parents=True)
    shutil.copy(record, work / "runs" / "one")
    modules = loaded(*arguments)
    assert "compresskd.cli" in modules
    assert not HEAVY & modules


@pytest.mark.slow
def test_a_run_that_compiles_nothing_loads_no_compiler(loaded):
    modules = loaded(
        "data=synthetic", "data.num_train=64", "data.num_test=16", "strategy=distill_then_compress", "epochs=1",
        "rank=2", "bits=4",
    )  # fmt: skip
    assert "torch.optim.adamw" in modules
    assert not (COMPILER | {"scipy"}) & modules

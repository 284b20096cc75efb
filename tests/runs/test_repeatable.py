"""The same command with empty caches, in two processes, gives the same model file, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import count
from tiny_runs import metrics

import compresskd

pytestmark = pytest.mark.slow

SMALL = (
    "data=synthetic",
    "measure.latency=false",
    "data.num_train=160",
    "data.num_test=64",
    "epochs=2",
    "teacher_fit.epochs=1",
    "rank=8",
)
# Of which a second thread changes how sums are taken: products of matrices, integers, convolutions.
ON_TWO_THREADS = ("bits=4", "resnet8x4, augmented")
IN_FULL_ONLY = ("lenet5",)  # whose layers the residual network has, too
IMAGES = (*SMALL[:-1], "rank=4", "data.input_shape=[3,16,16]", "train.batch_size=32")
CASES = {
    "distill_then_compress": SMALL,
    "bits=4": (*SMALL, "bits=4"),
    "fitnets": (*SMALL, "kd=fitnets", "kd.match=same_name"),
    "multi_stage": (*SMALL[:-1], "rank=4", "strategy=multi_stage"),
    "layerwise": (*SMALL[:-1], "rank=4", "strategy=compress_then_distill_layerwise"),
    "born compressed": (*SMALL[:-1], "student=tt_mlp", "strategy=train"),
    "lenet5": (*SMALL[:-1], "rank=8", "data.input_shape=[1,28,28]", "student=lenet5"),
    "resnet8x4, augmented": (*IMAGES, "student=resnet8x4", "data/augmentation=crop"),
}


def outcome(folder):
    record = json.loads((folder / "run" / "record.json").read_text())
    plans = [stage["plans"] for stage in record["stages"] if "plans" in stage]
    return plans, metrics(folder / "run"), (folder / "run" / "model" / "model.ckd").read_bytes()


# All cases one after the other, each in a folder of its own; a process for them all, as starting one takes longest.
DRIVER = """
import json, os, sys
from compresskd.cli import main
cases, root = json.loads(sys.argv.pop()), os.getcwd()
for number, arguments in enumerate(cases):
    os.makedirs(str(number))
    os.chdir(str(number))
    try:
        main([*arguments, "outputs_dir=outputs", "hydra.run.dir=run"])
    except SystemExit as end:
        assert not end.code, arguments
    os.chdir(root)
"""


ALL = count(False, True)  # every case on two threads, too
TRIED = [
    (case, threads)
    for threads in (1, 2)
    for case in CASES
    if ALL or case in ON_TWO_THREADS or (threads == 1 and case not in IN_FULL_ONLY)
]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """By the number of threads: the folders of two processes that ran all cases, each with caches of its own."""
    known = {}

    def run(threads):
        if threads not in known:
            known[threads] = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
            cases = [arguments for case, arguments in CASES.items() if (case, threads) in TRIED]
            started = [_start(folder, threads, cases) for folder in known[threads]]
            said = [process.communicate(timeout=900)[0] for process in started]
            assert [process.returncode for process in started] == [0, 0], said
        return known[threads]

    return run


def _start(folder, threads, cases):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # other tests run beside, and a thread that turns while it waits takes their core
        "PYTHONPATH": str(Path(compresskd.__file__).parents[1]),
        "COMPRESSKD_CACHE": str(folder / "cache"),
        "XDG_CACHE_HOME": str(folder / "xdg"),
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER, json.dumps(cases)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(("case", "threads"), TRIED)
def test_the_same_command_twice_gives_the_same_file(twice, case, threads):
    number = [each for each, of in TRIED if of == threads].index(case)
    first, second = (outcome(folder / str(number)) for folder in twice(threads))
    assert first[0], "no factorized layer had a plan"
    assert {plans["source"] for plans in first[0]} == {"fixed"}
    assert first == second

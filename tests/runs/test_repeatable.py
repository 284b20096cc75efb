"""The same command with empty caches, in two processes, gives the same model file, bit for bit."""

import json

import pytest
from tiny_runs import Program, metrics

pytestmark = pytest.mark.slow

SMALL = (
    "data=synthetic",
    "data.num_train=200",
    "data.num_test=64",
    "epochs=2",
    "teacher_fit.epochs=2",
    "rank=8",
)
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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_same_command_twice_gives_the_same_file(tmp_path, case, threads):
    programs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        caches = {"COMPRESSKD_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "xdg")}
        arguments = (*CASES[case], "outputs_dir=outputs", "hydra.run.dir=run")
        programs.append(Program(arguments, folder, OMP_NUM_THREADS=str(threads), **caches))
    for each in programs:
        assert each.finish(600) == 0, each.text
    first, second = (outcome(tmp_path / name) for name in ("first", "second"))
    assert first[0], "no factorized layer had a plan"
    assert {plans["source"] for plans in first[0]} == {"fixed"}
    assert first == second

"""Runs for tests of trust: one of nothing but compresskd's parts, and one of a user's own code."""

import json

TINY = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=64", "data.num_test=16", "teacher.hidden=[16]", "student.hidden=[16]",
    "epochs=0", "teacher_fit.epochs=0", "rank=2", "strategy=distill_then_compress",
)  # fmt: skip
OWN = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=64", "data.num_test=16", "strategy=train", "epochs=0",
    "student=custom", "~student.num_classes", "student._target_=own_net.Net",
)  # fmt: skip
NET = """
from torch import nn
import own_parts

class Net(nn.Linear):
    def __init__(self):
        super().__init__(own_parts.SIZE, 4)

    def forward(self, x):
        return super().forward(x.flatten(1))
"""


def write_own(folder):
    """The user's own code: a module and what it imports."""
    (folder / "own_net.py").write_text(NET)
    (folder / "own_parts.py").write_text("SIZE = 64\n")


def record_of(directory):
    return json.loads((directory / "record.json").read_text())


def change(directory, edit):
    record = record_of(directory)
    edit(record)
    (directory / "record.json").write_text(json.dumps(record))


def unfinish(record):
    """As a run that was stopped after its stages."""
    record["status"] = "interrupted"


def without_fingerprints(record):
    """Of the files: what notices a change of them first, and is not covered by a signature."""
    for entry in record["stages"]:
        del entry["files"], entry["fingerprint"]
    del record["model"]["files"]

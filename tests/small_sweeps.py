"""Sweeps of tiny runs, and what they leave."""

import json
import os
from pathlib import Path

SMALL = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=64", "data.num_test=32", "student.hidden=[8]", "teacher.hidden=[8]",
    "epochs=1", "teacher_fit.epochs=1", "rank=2", "strategy=distill",
)  # fmt: skip


def failing(work):
    """Overrides of two jobs, one of which fails after more steps than the trial before a run takes."""
    (work / "failing_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, fails):\n"
        "        super().__init__(64, 4)\n"
        "        self.fails, self.calls = fails, 0\n\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.fails and self.calls > 10:\n"
        "            raise RuntimeError('the net failed')\n"
        "        return super().forward(x.flatten(1))\n"
    )
    own = ("student=custom", "~student.num_classes", "student._target_=failing_net.Net")
    small = [option for option in SMALL if not option.startswith(("student.", "epochs="))]
    return (*small, *own, "epochs=20", "+student.fails=false,true")


def records(folder):
    """By the name of its folder, every record below `folder`."""
    found = sorted(  # os.walk, as Path.rglob raises where a folder of a running job vanishes meanwhile
        Path(where, "record.json") for where, _, files in os.walk(folder) if "record.json" in files
    )
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def sweep_folder(work, outputs="outputs"):
    (folder,) = (work / outputs / "sweeps").iterdir()
    return folder

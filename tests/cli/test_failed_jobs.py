"""A job of a sweep that fails."""

import json


def test_a_failed_job_of_a_sweep_stops_no_other_and_is_told(run_cli, work):
    (work / "failing_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, fails):\n"
        "        super().__init__(64, 4)\n"
        "        self.fails, self.calls = fails, 0\n\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.fails and self.calls > 10:\n"  # beyond the few steps of the trial beforehand
        "            raise RuntimeError('the net failed')\n"
        "        return super().forward(x.flatten(1))\n"
    )
    typed = ["data=synthetic", "data.num_train=64", "data.num_test=16", "strategy=train", "epochs=20"]
    typed += ["student=custom", "~student.num_classes", "student._target_=failing_net.Net"]
    outcome = run_cli("-m", *typed, "+student.fails=true,false")
    assert outcome.status == 1
    assert "compresskd: RuntimeError: the net failed (--verbose shows where)" in outcome.err
    assert "Traceback" not in outcome.err
    records = [path for path in outcome.left if path.endswith("record.json") and "teachers" not in path]
    assert len(records) == 2
    states = {json.loads((work / path).read_text())["status"] for path in records}
    assert states == {"failed", "finished"}

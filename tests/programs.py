"""The command line in processes of their own, forked from one that has imported it: starting them costs no imports."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import compresskd

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch._dynamo", "hydra", "compresskd.config.build", "compresskd.cli.execute", "compresskd.cli.jobs"]
)


class Program:
    """One process of the command line, the leader of a group of its own; what it says is written beside its folder."""

    def __init__(self, arguments, folder, where=None):
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        self.output.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        environment["PYTHONPATH"] = str(Path(compresskd.__file__).parents[1])
        self.process = FORKED.Process(
            target=_run, args=(list(arguments), str(where or folder), str(self.output), environment)
        )
        self.process.start()

    @property
    def running(self):
        return self.process.is_alive()

    @property
    def text(self):
        return self.output.read_text()

    def wait_for(self, condition, seconds=300.0):
        """Until `condition()` holds; whether it did while the program was still running."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def send(self, number):
        """A signal, to the program and all that it started."""
        os.killpg(self.process.pid, number)

    def kill(self):
        """SIGKILL; whether it still ran."""
        killed = self.running
        if killed:
            self.send(signal.SIGKILL)
        self.process.join()
        return killed

    def finish(self, seconds=300.0):
        """The exit code; None where it has not ended."""
        self.process.join(seconds)
        return self.process.exitcode


def _run(arguments, folder, output, environment):
    import torch

    from compresskd.cli import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(output, "w", buffering=1) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        sys.argv = ["compresskd", *arguments]
        sys.exit(main(arguments))

"""Files in the working directory stand in for no module of Python or of a library, whichever command is run there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs_to_tamper import OWN, TINY, write_own

import compresskd

pytestmark = pytest.mark.slow

NAMES = (
    "csv",
    "rich",
    "numpy",
    "statistics",
    "datasets",
    "yaml",
    "onnx",
    "tltorch",
    "hydra_plugins",
    "own_parts",
)
COMMANDS = {
    "compare": ("compare", "run"),
    "evaluate": ("evaluate", "run"),
    "export": ("export", "run", "--to", "dense"),
    "bench": ("bench", "run", "--batch", "1", "--plans", "0"),
    "resume": ("resume", "run"),
    "run": (*TINY, "strategy=train", "hydra.run.dir=new"),
    "version": ("--version",),
    "help": ("evaluate", "--help"),
    "config": (*TINY, "--cfg", "job"),
}


@pytest.fixture
def shadows(work):
    """Modules that leave a mark where they are imported."""
    for name in NAMES:
        (work / f"{name}.py").write_text(f"open({str(work / name)!r} + '.mark', 'w')\n")
    (work / "hydra_plugins.py").unlink()
    (work / "hydra_plugins" / "mine").mkdir(parents=True)
    (work / "hydra_plugins" / "mine" / "__init__.py").write_text(
        f"open({str(work / 'plugin.mark')!r}, 'w')\n"
    )
    return lambda: sorted(path.name for path in work.glob("*.mark"))


def program(work, *arguments, entry=("-P", "-m", "compresskd"), path=""):
    """A process of its own; `path` goes before the package's folder in PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path + str(Path(compresskd.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *entry, *arguments],
        cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_shadowed(shipped, shadows, work, command):
    ended = program(work, *COMMANDS[command])
    assert ended.returncode == (2 if command == "resume" else 0), (
        ended.stderr
    )  # a finished run is not resumed
    assert shadows() == []


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_nor_by_an_empty_place_in_pythonpath_or_by_m(shipped, shadows, work, command):
    ended = program(work, *COMMANDS[command], entry=("-m", "compresskd"), path=":")
    assert ended.returncode == 0, ended.stderr
    assert shadows() == []


@pytest.mark.parametrize(("num_workers", "seeds"), [(1, "0,1"), (2, "0,1,2")])  # a second job for one of them
def test_workers_of_a_parallel_sweep(shadows, work, num_workers, seeds):
    """Own code is found here, libraries are not.

    Each worker looks for Hydra's plugins before each of its jobs, after it has found the user's own code here.
    """
    write_own(work)
    own = (work / "own_net.py").read_text()
    late = own.replace("def forward(self, x):\n", "def forward(self, x):\n        import own_late\n\n", 1)
    assert late != own
    (work / "own_net.py").write_text(late)
    (work / "own_late.py").write_text("")
    joblib = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={num_workers}")
    ended = program(
        work, "-m", *OWN, f"seed={seeds}", *joblib, "hydra.sweep.dir=sweep", "hydra.sweep.subdir='s${seed}'"
    )
    assert ended.returncode == 0, ended.stderr
    if num_workers == 1:
        ended = program(work, "evaluate", "sweep/s0")
        assert ended.returncode == 0, ended.stderr
    assert shadows() == []

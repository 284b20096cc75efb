"""Whole experiments by the names that users write, run in this process into a temporary folder."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register
from compresskd.listeners.console import Reporter
from compresskd.run import open_run


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Where teachers are kept for all tests, and the runs that were made already, by what was typed."""
    return tmp_path_factory.mktemp("strategies"), {}


@pytest.fixture
def run_strategy(shared):
    """run_strategy('strategy=...', 'rank=4', ...) -> (record, run directory), both to be read only.

    The same overrides are run once; teachers are trained once for all tests.
    """
    folder, runs = shared
    register()

    def run(*overrides):
        if overrides not in runs:
            typed = [
                f"outputs_dir={folder}/outputs",
                "teacher_fit.epochs=4",
                "measure.latency=false",
                *overrides,
            ]
            (experiment,) = build_jobs(compose_jobs(typed).jobs)
            opened = open_run(folder / f"run{len(list(folder.iterdir()))}")
            try:
                runs[overrides] = experiment.run(opened, Reporter()), opened.directory
            finally:
                opened.close()
        return runs[overrides]

    return run


@pytest.fixture
def digits_by_class(tmp_path, monkeypatch):
    """Scikit-learn's digits as PNG files, in one folder for each class."""
    monkeypatch.setenv("COMPRESSKD_CACHE", str(tmp_path / "cache"))
    pixels, targets = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(pixels.reshape(-1, 8, 8), targets, strict=True)):
        folder = tmp_path / "digits" / "train" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(folder / f"{number:04}.png")
    return tmp_path / "digits"

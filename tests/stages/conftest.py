"""Whole experiments by the names that users write, run in this process into a temporary folder."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from compresskd import measure
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register
from compresskd.listeners.console import Reporter
from compresskd.run import open_run


@pytest.fixture
def run_strategy(tmp_path, monkeypatch):
    """run_strategy('strategy=...', 'rank=4', ...) -> (record, run directory); teachers are shared in the folder."""

    def latency(models, example, **options):
        return {name: {"batch_1": 1.0, "batch_32": 1.0} for name in models}

    monkeypatch.setattr(measure, "latency", latency)
    register()
    count = 0

    def run(*overrides):
        nonlocal count
        count += 1
        typed = [f"outputs_dir={tmp_path}/outputs", "teacher_fit.epochs=4", *overrides]
        (experiment,) = build_jobs(compose_jobs(typed).jobs)
        opened = open_run(tmp_path / f"run{count}")
        try:
            record = experiment.run(opened, Reporter())
        finally:
            opened.close()
        return record, opened.directory

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

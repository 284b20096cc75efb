import pytest
import torch

from compresskd.data import digits as module
from compresskd.data.digits import digits


def load(**options):
    defaults = {
        "name": "digits",
        "mean": [0.3053],
        "std": [0.376],
        "test_fraction": 0.2,
        "validation_fraction": 0.15,
    }
    return digits(**{**defaults, **options})


def test_all_of_it_is_there_and_stratified():
    data = load()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1222, 216, 359]
    assert data.input_shape == (1, 8, 8)
    assert data.num_classes == 10
    for split in (data.train, data.validation, data.test):
        shares = torch.bincount(split.targets) / len(split)
        assert float((shares - 0.1).abs().max()) < 0.006
    rows = torch.cat([data.train.rows, data.validation.rows, data.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))


def test_the_configured_mean_and_deviation_are_those_of_the_set():
    levels = load().train.pixels.double() / 16
    assert float(levels.mean()) == pytest.approx(0.3053, abs=1e-4)
    assert float(levels.std()) == pytest.approx(0.3760, abs=1e-4)
    assert int(load().train.pixels.max()) == 16


def test_the_file_read_directly_is_what_the_library_gives(monkeypatch):
    direct = load()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert load().fingerprint == direct.fingerprint

"""Keys and values of earlier versions are refused with the new ones named."""

import pytest

from compresskd.config import renamed
from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register

TYPED = {
    "key": ("quant.bits_of_vectors=8", "quant.bits_of_vectors", "quant.other_bits"),
    "key within stages": (
        "strategy.stages.distill.num_passes=3",
        "strategy.stages.distill.num_passes",
        "strategy.stages.distill.epochs",
    ),
    "added key": ("+quant.bits_of_vectors=8", "quant.bits_of_vectors", "quant.other_bits"),
    "value": ("quant.estimator=learnt", "quant.estimator", "quant.estimator=lsq"),
}


@pytest.fixture(autouse=True)
def _renames(monkeypatch):
    register()
    keys = {
        r"quant\.bits_of_vectors": "quant.other_bits",
        r"(strategy\.stages\.[^.]+)\.num_passes": r"\1.epochs",
    }
    monkeypatch.setattr(renamed, "KEYS", keys)
    monkeypatch.setattr(renamed, "VALUES", {"quant.estimator": {"learnt": "lsq"}})


@pytest.mark.parametrize(("typed", "key", "new"), TYPED.values(), ids=TYPED)
def test_what_is_typed_by_an_earlier_name_is_refused_with_the_new_one(typed, key, new):
    (fault,) = compose_jobs([typed]).jobs[0].faults
    assert fault.key == key
    assert new in fault.text


def test_a_key_of_a_file_is_refused_too(tmp_path):
    (tmp_path / "quant").mkdir()
    text = "defaults: [default, _self_]\nbits_of_vectors: 8\nestimator: learnt\n"
    (tmp_path / "quant" / "mine.yaml").write_text(text)
    (job,) = compose_jobs(["quant=mine"], config_dirs=[tmp_path]).jobs
    assert {fault.key for fault in job.faults} == {"quant.bits_of_vectors", "quant.estimator"}

"""Keys and values of earlier versions are refused with the new ones named."""

import pytest

from compresskd.config.compose import compose_jobs
from compresskd.config.schema import register

TYPED = {
    "value of another key": ("compress.data_aware=false", "compress.data_aware", "compress.whitening=none"),
    "key": ("quant.vector_bits=8", "quant.vector_bits", "quant.other_bits"),
    "added key": ("+quant.vector_bits=8", "quant.vector_bits", "quant.other_bits"),
    "key within stages": (
        "strategy.stages.factorize.how.rank=3",
        "strategy.stages.factorize.how.rank",
        "strategy.stages.factorize.compression.rank",
    ),
    "value": ("quant.estimator=learned_step", "quant.estimator", "quant.estimator=lsq"),
}


@pytest.fixture(autouse=True)
def _registered():
    register()


@pytest.mark.parametrize(("typed", "key", "new"), TYPED.values(), ids=TYPED)
def test_what_is_typed_by_an_earlier_name_is_refused_with_the_new_one(typed, key, new):
    (fault,) = compose_jobs([typed]).jobs[0].faults
    assert fault.key == key
    assert new in fault.text


def test_a_key_of_a_file_is_refused_too(tmp_path):
    (tmp_path / "quant").mkdir()
    text = "defaults: [default, _self_]\nvector_bits: 8\nestimator: learned_step\n"
    (tmp_path / "quant" / "mine.yaml").write_text(text)
    (job,) = compose_jobs(["quant=mine"], config_dirs=[tmp_path]).jobs
    assert {fault.key for fault in job.faults} == {"quant.vector_bits", "quant.estimator"}

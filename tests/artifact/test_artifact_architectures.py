"""Every architecture in conf/model, dense and factorized, at every width: both forms give the prepared outputs."""

import pytest
import torch
from stored_models import NAMES, content, factorized, inputs_for, make, read_back, shape_for

from compresskd import artifact
from compresskd.quant.granularity import PerTensor
from compresskd.quant.prepare import QuantSpec, prepare

QUICK = {"mlp", "lenet5", "resnet20", "tt_mlp"}
CASES = [
    pytest.param(name, rank, bits, marks=[] if name in QUICK and bits == 4 else [pytest.mark.slow])
    for name in NAMES
    for rank in (None, 4)
    for bits in (8, 4, 2)
]


@pytest.mark.parametrize(("name", "rank", "bits"), CASES)
def test_round_trip(name, rank, bits, tmp_path):
    model = make(name)
    if rank is not None:
        factorized(model, rank)
    prepare(
        model,
        QuantSpec(
            bits=bits, initial_scale="absmax", other_bits=16 if bits == 8 else 8, granularity=PerTensor()
        ),
    )
    x = inputs_for(name)
    with torch.inference_mode():
        y = model.eval()(x)
    assert torch.isfinite(y).all()
    stored = content(model, input_shape=shape_for(name))
    for read in read_back(stored, tmp_path):
        again = artifact.build(read)
        assert not any(module.training for module in again.modules())
        assert again.spec == model.spec
        assert artifact.packages(again) == []
        with torch.inference_mode():
            assert torch.equal(again(x), y)

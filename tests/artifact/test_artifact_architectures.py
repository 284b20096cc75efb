"""Every kind of architecture in conf/model, and every pair of form and bits: both files give the prepared outputs."""

from itertools import cycle, product

import pytest
import torch
from hostile import count
from named_models import NAMES
from stored_models import content, factorized, inputs_for, make, read_back, shape_for

from compresskd import artifact
from compresskd.quant.granularity import PerTensor
from compresskd.quant.prepare import QuantSpec, prepare

FORMS = list(product((None, 4), (8, 4, 2)))  # rank of the factorized layers, bits
SMALL = ["mlp", "tt_mlp", "lenet5", "resnet20"]
# What else conf/model has differs from one of these in depth and width alone.
LARGE = count(["resnet8x4", "wrn_16_1", "vit_tiny"], [name for name in NAMES if name not in SMALL])
# The small ones in every form, which covers each type of layer; each other one in one of the forms, in turn.
CASES = [(name, *form) for name in SMALL for form in FORMS]
CASES += [(name, *form) for name, form in zip(LARGE, cycle(FORMS), strict=False)]


@pytest.mark.slow
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

"""Whole runs of models that are hard to compress: teacher, factorization, rounding, files and the record."""

import pytest
import torch
from hard_modules import MODELS

from compresskd import artifact, measure
from compresskd.export import dense

pytestmark = pytest.mark.slow


def options(name, *overrides):
    roles = [
        option
        for role in ("teacher", "student")
        for option in (f"{role}=custom", f"{role}._target_=hard_modules.build", f"+{role}.name={name}")
    ]
    return [*roles, "data=digits", "teacher_fit.epochs=1", "epochs=1", "rank=4", *overrides]


def final(record):
    return record.stage(record.final)


@pytest.mark.parametrize(
    "name",
    ["tied", "languagemodel", "shared", "subclass", "hooked", "frozen", "normalized", "upsampling"],
)
def test_a_run_ends_with_a_model_that_is_what_was_scored(run_strategy, name):
    quantized = ("bits=4", "quant.other_bits=16", "quant.epochs=1", "quant.core_start=nearest")
    strategy = ("strategy=distill_then_compress", *quantized)
    record, directory = run_strategy(*options(name, *strategy))
    folder, compact = directory / "model", directory / "model" / "model.ckd"
    one, other = (artifact.load(path, trust=("hard_modules",)) for path in (folder, compact))
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(one(x), other(x))
    assert measure.num_parameters(one) == final(record)["size"]["num_parameters"]
    for entry in record.stages:
        assert sum(each["share"] for each in entry["coverage"].values()) == pytest.approx(1)
        assert {"fc1"}.isdisjoint(entry["skipped"])
    plain = dense.fold(one)
    torch.testing.assert_close(plain(x), one(x), rtol=1e-3, atol=1e-4)
    assert measure.num_parameters(plain) == measure.num_parameters(MODELS[name]())


def test_a_budget_counts_tied_weights_once(run_strategy):
    record, _ = run_strategy(*options("tied", "strategy=compress", "compress.budget=0.5"))
    ratio = final(record)["size"]["num_parameters"] / record.teacher["size"]["num_parameters"]
    assert 0.45 < ratio <= 0.5


def test_quant_budget_counts_tied_weights_once(run_strategy):
    record, _ = run_strategy(*options("tied", "strategy=distill", "quant.budget=0.12"))
    assert final(record)["size"]["packed_bytes"] <= final(record)["budget"]["bytes"]


def test_a_frozen_layer_is_the_same_after_all_stages(run_strategy):
    record, directory = run_strategy(*options("frozen", "strategy=compress_then_distill"))
    after = [artifact.load(directory / s["checkpoint"], trust=("hard_modules",)).mid for s in record.stages]
    for layer in after[1:]:
        assert torch.equal(layer.to_dense(), after[0].to_dense())
        assert not any(p.requires_grad for p in layer.parameters())


def test_what_no_rule_covers_is_said(run_strategy, caplog):
    with caplog.at_level("INFO", logger="compresskd"):
        record, _ = run_strategy(*options("transposed", "strategy=compress"))
    assert "TransposedLinear has no factorized form" in final(record)["skipped"]["mid"]
    assert "of the bytes are in modules that are never compressed: mid" in caplog.text


def test_nothing_that_may_be_replaced_is_refused_before_the_teacher_is_trained(run_strategy, tmp_path):
    typed = options(
        "listed", "strategy=compress", "compress.exclude=[out]", f"outputs_dir={tmp_path}/outputs"
    )
    with pytest.raises(Exception, match="holds it outside of the network's modules"):
        run_strategy(*typed)
    assert not (tmp_path / "outputs" / "teachers").exists()

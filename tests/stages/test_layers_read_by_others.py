"""Whole runs of a model that reads the weights of its own layers: they stay dense, with the reason."""

import pytest
import torch

import compresskd
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError

pytestmark = pytest.mark.slow

READ = ("encoder.linear1", "encoder.linear2", "encoder.self_attn.out_proj")
BOTH = [
    "teacher=custom",
    "teacher._target_=encoders.Encoder",
    "student=custom",
    "student._target_=encoders.Encoder",
]
SMALL = ["epochs=1", "teacher_fit.epochs=1", "rank=2", "quant.core_start=nearest"]


@pytest.mark.parametrize("bits", [[], ["bits=4"], ["bits=8", "quant.activation_bits=8"]])
@pytest.mark.parametrize(
    "strategy", ["compress_then_distill", "distill_then_compress", "distill_to_compressed"]
)
def test_runs_to_its_end_and_answers_in_every_mode(run_strategy, strategy, bits):
    record, directory = run_strategy(f"strategy={strategy}", *BOTH, *SMALL, *bits)
    factorized = next(stage for stage in record.stages if stage["skipped"])
    for name in READ:
        assert "reads its weight" in factorized["skipped"][name]
    assert set(factorized["layers"]) == {"embed", "out"}
    if bits:
        assert record.stages[-1]["layers"].keys() == {"embed", "out", "encoder.self_attn", *READ}
    if "quant.activation_bits=8" in bits:
        assert record.stages[-1]["float_inputs"].keys() == {
            "encoder.self_attn",
            "encoder.self_attn.out_proj",
        }
    model = compresskd.load(directory, trust=["encoders"])
    x = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        fast = model(x)
    torch.testing.assert_close(model(x), fast, rtol=1e-3, atol=1e-4)  # the slow path, with gradients
    model.train()(x).sum().backward()


def test_nothing_but_such_layers_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="reads its weight"):
        build_jobs(compose_jobs(["strategy=compress", *BOTH, "compress.include=[encoder.*]"]).jobs)

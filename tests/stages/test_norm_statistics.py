"""Running statistics of batch norm after compression."""

import copy
import re

import pytest
import torch
from torch import nn

from compresskd.compression.norm_statistics import reestimate
from compresskd.config.faults import ConfigError
from compresskd.data.synthetic import synthetic
from compresskd.stages import Compression


def samples(count):
    data = synthetic(
        name="synthetic", num_train=64, num_test=16, separation=1.0, data_seed=0, num_classes=3, input_shape=(6,),
        validation_fraction=None, validation_count=12, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip
    return data.train.take(torch.arange(count), str(count))


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(0.5), nn.Linear(5, 3))
    with torch.no_grad():
        made[1].running_mean.fill_(7.0)
        made[1].num_batches_tracked.fill_(11)
    return made.train()


def test_statistics_are_those_of_all_batches():
    net, split = model(), samples(48)
    reestimate(net, split, batch_size=16)
    batches = [net[0](batch.inputs).detach() for batch in split.batches(16)]
    mean = torch.stack([y.mean(0) for y in batches]).mean(0)
    variance = torch.stack([y.var(0) for y in batches]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)


def test_all_else_is_left_as_it_was():
    net, split = model(), samples(40)
    net[3].eval()
    before = copy.deepcopy(net.state_dict())
    reestimate(net, split, batch_size=16)
    assert net[1].momentum == 0.3
    assert [m.training for m in net.modules()] == [True, True, True, True, False]
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var"}


def test_a_small_last_batch_does_not_count():
    net, other = model(), model()
    reestimate(net, samples(33), batch_size=16)
    reestimate(other, samples(32), batch_size=16)
    assert torch.equal(net[1].running_mean, other[1].running_mean)


def test_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="1 samples have no variance"):
        reestimate(model(), samples(1), batch_size=16)


@pytest.mark.slow
def test_a_run_gains_by_it(run_strategy):
    typed = (
        "strategy=compress",
        "teacher=resnet20",
        "student=resnet20",
        "teacher_fit.epochs=4",
        "compress.budget=0.1",
    )
    kept, _ = run_strategy(*typed)
    anew, _ = run_strategy(*typed, "compress.batch_norm=reestimate")
    score = [r.stages[-1]["metrics"]["validation_accuracy"] for r in (kept, anew)]
    assert score[1] > score[0]
    assert kept.stages[-1]["size"]["num_parameters"] == anew.stages[-1]["size"]["num_parameters"]


def test_a_single_calibration_sample_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="num_calibration: got 1, expected >= 2 samples with batch_norm"):
        Compression(rank=4, num_calibration=1, batch_norm="reestimate")


def test_a_model_without_batch_norm_is_refused(run_strategy):
    with pytest.raises(ConfigError, match=re.escape("compress.batch_norm: got 'reestimate', expected keep")):
        run_strategy("strategy=compress", "compress.batch_norm=reestimate")

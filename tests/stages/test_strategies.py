"""Every strategy end to end on digits, and every option of theirs: it must change what comes out."""

import json
import math
from pathlib import Path

import pytest

from compresskd import artifact, tt
from compresskd.config.shipped import conf_dir
from compresskd.layers import surgery

STRATEGIES = sorted(p.stem for p in (conf_dir() / "strategy").glob("*.yaml"))
COMPRESSING = [s for s in STRATEGIES if s not in ("train", "distill", "distill_matched", "distill_qat")]


def epochs_of(directory: Path, stage: str):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_runs_end_to_end(run_strategy, strategy):
    record, directory = run_strategy(f"strategy={strategy}", "rank=6", "epochs=3", "optimizer.lr=0.005")
    assert record.status == "finished"
    final = record.stage(record.final)
    assert final["metrics"]["test_accuracy"] > 0.6
    reloaded = artifact.load(directory / final["checkpoint"])
    assert sum(p.numel() for p in reloaded.parameters()) == final["size"]["num_parameters"]
    assert artifact.folder_bytes(directory / final["checkpoint"]) == final["size"]["folder_bytes"]
    layers = surgery.structure(reloaded)
    assert bool(layers) is (strategy in COMPRESSING)
    assert all(max(layer["ranks"]) <= 6 for layer in layers.values())
    for name in layers:
        layer = reloaded.get_submodule(name)
        assert sum(p.numel() for p in layer.parameters()) < layer.to_dense().numel()


def test_a_strategy_without_a_teacher_trains_none(run_strategy, tmp_path):
    record, _ = run_strategy("strategy=train", "epochs=1", f"outputs_dir={tmp_path}/outputs")
    assert record.teacher is None
    assert not (tmp_path / "outputs" / "teachers").exists()


@pytest.mark.slow
def test_alpha_of_each_step_is_live(run_strategy):
    common = ("strategy=multi_stage", "rank_schedule=explicit", "epochs=1")
    constant, one = run_strategy(
        *common, "rank_schedule.stages=[{rank: 16, alpha: 0.5}, {rank: 8, alpha: 0.5}]"
    )
    falling, two = run_strategy(
        *common, "rank_schedule.stages=[{rank: 16, alpha: 0.5}, {rank: 8, alpha: 0.1}]"
    )
    assert epochs_of(one, "step_1_r16")[0]["train_loss"] == epochs_of(two, "step_1_r16")[0]["train_loss"]
    assert epochs_of(one, "step_2_r8")[0]["train_loss"] != epochs_of(two, "step_2_r8")[0]["train_loss"]
    assert constant.stages[1]["layers"]["fc1"]["ranks"] == [16]
    assert falling.stages[2]["layers"]["fc1"]["ranks"] == [8]


# What an option does, told from two runs with and without it: (strategy, option, stage that it concerns, what holds).
OPTIONS = [
    ("compress_then_distill", "strategy.init=random", "factorize", lambda plain, changed: (
        changed.accuracy < 0.3 and plain.accuracy > 0.6)),
    ("compress_then_distill", "strategy.from=previous", "distill", lambda plain, changed: (
        changed.teachers == {"previous"} and changed.terms["soft_targets"] < 0.2 * plain.terms["soft_targets"])),
    ("compress_then_distill", "strategy.from=both", "distill", lambda plain, changed: (
        plain.teachers == {"original"} and changed.teachers == {"original", "previous"})),
    ("compress_then_distill_layerwise", "strategy.stages.fit_layers.steps=5", "fit_layers", lambda plain, changed: (
        all(plain.errors("after")[name] < after for name, after in changed.errors("after").items()))),
    ("compress_then_distill_layerwise", "strategy.stages.fit_layers.learning_rate=1e-5", "fit_layers",
        lambda plain, changed: (
            plain.errors("before") == changed.errors("before")
            and all(plain.errors("after")[name] < after for name, after in changed.errors("after").items()))),
    ("compress_then_distill_layerwise", "strategy.stages.fit_layers.num_samples=64", "fit_layers",
        lambda plain, changed: plain.errors("before") != changed.errors("before")),
    ("compress_blockwise", "strategy.stages.fit_blocks.updates=5", "fit_blocks",
        lambda plain, changed: sum(plain.blocks.values()) < sum(changed.blocks.values())),
    ("compress_blockwise", "strategy.stages.fit_blocks.learning_rate=1e-5", "fit_blocks",
        lambda plain, changed: sum(plain.blocks.values()) < sum(changed.blocks.values())),
    ("compress_blockwise", "strategy.stages.fit_blocks.num_samples=64", "fit_blocks",
        lambda plain, changed: plain.blocks != changed.blocks),
    ("compress_blockwise", "strategy.stages.fit_blocks.batch_size=64", "fit_blocks",
        lambda plain, changed: plain.blocks != changed.blocks),
    ("compress_blockwise", "strategy.stages.fit_blocks.inputs=teacher", "fit_blocks",
        lambda plain, changed: plain.blocks != changed.blocks),
    ("distill_then_compress_blockwise", "strategy.stages.fit_blocks.updates=5", "fit_blocks",
        lambda plain, changed: sum(plain.blocks.values()) < sum(changed.blocks.values())),
    ("multi_stage", "strategy.init=fresh", "step_1_r16", lambda plain, changed: (
        changed.trained["train_accuracy"] < 0.5 * plain.trained["train_accuracy"])),
    ("multi_stage", "strategy.teacher=original", "step_1_r16", lambda plain, changed: (
        plain.teachers == {"previous"} and changed.teachers == {"original"})),
    ("multi_stage", "strategy.teacher=both", "step_1_r16", lambda plain, changed: (
        changed.teachers == {"original", "previous"})),
    ("multi_stage", "rank_schedule.alpha=[0.9,0.1]", "step_1_r16", lambda plain, changed: (
        changed.loss_of_share(0.9) == pytest.approx(changed.trained["train_loss"]))),
    ("admm_then_compress", "strategy.rho=0.1", "admm", lambda plain, changed: (
        changed.terms["penalty"] > 10 * plain.terms["penalty"])),
    ("admm_then_compress", "strategy.stages.admm.updates_per_epoch=5", "admm", lambda plain, changed: (
        all(changed.distances[name] < distance for name, distance in plain.distances.items()))),
    ("distill_then_compress", "+strategy.stages.finetune.learning_rate=1e-4", "finetune", lambda plain, changed: (
        changed.trained["train_accuracy"] < plain.trained["train_accuracy"]
        and changed.trained["train_loss"] > plain.trained["train_loss"])),
    ("distill_then_compress", "+strategy.stages.finetune.alpha=0.1", "finetune", lambda plain, changed: (
        changed.loss_of_share(0.1) == pytest.approx(changed.trained["train_loss"]))),
    ("distill_then_compress", "+strategy.stages.finetune.temperature=1.5", "finetune", lambda plain, changed: (
        changed.terms["soft_targets"] < 0.5 * plain.terms["soft_targets"])),
    ("distill_then_compress", "compress.exclude=[fc1]", "factorize", lambda plain, changed: (
        set(plain.stage["layers"]) - set(changed.stage["layers"]) == set(changed.stage["skipped"]) == {"fc1"})),
]  # fmt: skip


class Told:
    """What a run says of one of its stages."""

    def __init__(self, record, directory, name):
        self.stage = record.stage(name)
        self.accuracy = self.stage["metrics"]["test_accuracy"]
        self.teachers = set(self.stage.get("teacher_outputs", {}))
        self.trained = next(iter(epochs_of(directory, name)), {})
        self.terms = self.trained.get("terms", {})
        self.distances = self.stage.get("low_rank_distance", {}).get("after", {})

    @property
    def blocks(self):
        return {name: error["after"] for name, error in self.stage["block_errors"].items()}

    def errors(self, when):
        return {name: error[when] for name, error in self.stage["layer_errors"].items()}

    def loss_of_share(self, alpha):
        return (1 - alpha) * self.terms["cross_entropy"] + alpha * self.terms["soft_targets"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "option", "stage", "holds"),
    OPTIONS,
    ids=lambda each: each if isinstance(each, str) else "effect",
)
def test_option_does_what_it_says(run_strategy, strategy, option, stage, holds):
    common = (f"strategy={strategy}", "rank=4", "epochs=1")
    plain, changed = (Told(*run_strategy(*common, *added), stage) for added in ((), (option,)))
    assert holds(plain, changed)


def test_finetune_of_zero_epochs_is_the_two_step_form(run_strategy):
    record, _ = run_strategy("rank=4", "epochs=1", "strategy.stages.finetune.epochs=0")
    after_svd, after_finetune = record.stages[1]["metrics"], record.stages[2]["metrics"]
    assert after_svd["test_accuracy"] == after_finetune["test_accuracy"]


@pytest.mark.slow
def test_the_ladder_ends_where_accuracy_falls(run_strategy):
    record, _ = run_strategy(
        "strategy=multi_stage", "rank_schedule=until_drop", "rank=32", "rank_schedule.max_drop=2", "epochs=6",
        "strategy.stages.step.epochs=1",
    )  # fmt: skip
    ended = [i for i, s in enumerate(record.stages) if s.get("stopped_early")]
    assert len(ended) == 1
    kept, undone = record.stages[ended[0] - 1], record.stages[ended[0]]
    assert undone["size"]["num_parameters"] == kept["size"]["num_parameters"]
    drop = record.stages[0]["metrics"]["validation_accuracy"] - kept["metrics"]["validation_accuracy"]
    assert 100 * drop <= 2
    assert all("not_run" in s for s in record.stages[ended[0] + 1 :])


@pytest.mark.slow
def test_matched_dense_student_has_at_most_the_bytes(run_strategy):
    record, _ = run_strategy("strategy=distill_matched", "rank=6", "epochs=1")
    compressed, _ = run_strategy("strategy=train_to_compressed", "rank=6", "epochs=1")
    matched = record.stage("distill")["size"]["folder_bytes"]
    allowed = compressed.stage("train")["size"]["folder_bytes"]
    assert 0.9 * allowed < matched <= allowed


def _of_small_weight(kind):
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    made = {
        "linear": lambda: nn.Linear(96, 64),
        "conv": lambda: nn.Conv2d(48, 32, 3),
        "conv 1d": lambda: nn.Conv1d(48, 32, 3),
        "transposed": lambda: Conv1D(64, 96),
        "embedding": lambda: nn.Embedding(300, 48),
    }[kind]()
    nn.init.normal_(made.weight, std=0.02)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *[(kind, "svd") for kind in ("linear", "conv", "conv 1d", "transposed", "embedding")],
        *[(kind, "tensor_train") for kind in ("linear", "conv", "embedding")],
        *[(kind, method) for kind in ("linear", "conv") for method in ("tucker", "cp")],
    ],
)
def test_fresh_factors_keep_the_mean_square_of_the_weight(kind, method):
    from compresskd.compression.compression import _fresh

    layer = _of_small_weight(kind)
    found = []
    for _ in range(8):  # one product of a few factors scatters
        new = _fresh(layer, make=lambda layer: tt.factorize(layer, rank=8, method=method))
        assert not isinstance(new, tt.Skipped)
        found.append(float(new.to_dense().detach().square().mean()))
    assert math.isclose((sum(found) / len(found)) ** 0.5, 0.02, rel_tol=0.3)


def test_fresh_factors_of_zeros_are_zero_and_can_learn():
    import torch

    from compresskd.compression.compression import _fresh

    for method in ("svd", "tucker", "cp"):
        layer = _of_small_weight("linear")
        new = tt.factorize(layer, rank=8, method=method)
        torch.nn.init.zeros_(layer.weight)
        new = _fresh(layer, make=lambda _, new=new: new)
        assert not bool(new.to_dense().any())
        new(torch.randn(5, 96)).sum().backward()
        assert any(bool(p.grad.any()) for name, p in new.named_parameters() if name != "bias")


def test_fresh_factors_of_a_tied_table_are_its_heads_too():
    import torch
    from torch import nn

    from compresskd.compression.compression import _fresh
    from compresskd.compression.replacement import carry_out

    model = nn.ModuleDict({"table": _of_small_weight("embedding"), "head": nn.Linear(48, 300, bias=False)})
    model["head"].weight = model["table"].weight
    plan = {"table": lambda layer: _fresh(layer, make=lambda layer: tt.factorize(layer, rank=8))}
    carry_out(model, plan)
    table, head = model["table"].to_dense(), model["head"].to_dense()
    assert torch.equal(table, head)
    assert math.isclose(float(table.detach().square().mean()) ** 0.5, 0.02, rel_tol=0.4)


@pytest.mark.slow
def test_admm_brings_weights_nearer_to_low_rank(run_strategy):
    pulled, _ = run_strategy("strategy=admm_then_compress", "rank=6", "epochs=6", "strategy.rho=0.1")
    distances = pulled.stage("admm")["low_rank_distance"]
    assert all(distances["after"][name] < distances["before"][name] for name in distances["after"])


@pytest.mark.slow
def test_layerwise_start_lowers_every_error(run_strategy):
    record, _ = run_strategy(
        "strategy=compress_then_distill_layerwise", "rank=6", "epochs=0", "compress.whitening=none"
    )
    errors = record.stage("fit_layers")["layer_errors"]
    assert {"fc1", "fc2"} <= set(errors)
    assert all(e["after"] <= e["before"] for e in errors.values())
    assert any(e["after"] < 0.9 * e["before"] for e in errors.values())

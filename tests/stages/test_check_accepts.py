"""What `check` and the trial of a training accept, the stage carries out: random options for each stage."""

import copy
import functools
import random

import pytest
import torch

from compresskd.compression.compression import NothingCompressed
from compresskd.data.synthetic import synthetic
from compresskd.engine.experiment import Experiment
from compresskd.engine.strategy import Context, State, Strategy
from compresskd.kd.correlation import DIST
from compresskd.kd.decoupled import DKD
from compresskd.kd.features import RKD, Hint
from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.listeners.console import Reporter
from compresskd.models.build import build
from compresskd.run import open_run
from compresskd.stages import (
    Admm,
    Compression,
    Factorize,
    Fit,
    FitLayers,
    MatchedDense,
    MultiStage,
    Quantization,
    Quantize,
)
from compresskd.stages.dry_run import try_training
from compresskd.training import Recipe
from compresskd.training.schedules import cosine

NUM_DRAWS = 12
DEVICE = torch.device("cpu")
# What no structure tells: only the trained weights know what they lose.
TOLD_BY_WEIGHTS = (
    "no layer gets smaller",
    "no smaller model loses so little",
    "takes with every layer at its fewest",
)


def objective(rng):
    terms = {"cross_entropy": CrossEntropy(rng.choice((0.0, 0.5, 1.0)), rng.choice((0.0, 0.1, 0.9)))}
    other = rng.choice((
        None,
        SoftTargets(0.5, rng.choice((1e-3, 1.0, 4.0, 1e4)), rng.choice((True, False))),
        DKD(0.5, 2.0), DIST(0.5), RKD(), Hint(match=rng.choice(("middle", "last", "same_name"))),
        Hint(pairs={"fc1": rng.choice(("fc2", "fc3", "nowhere"))}),
    ))  # fmt: skip
    return Objective(terms if other is None else {**terms, "other": other})


def compression(rng):
    wish = rng.choice((
        {}, {}, {"ranks": {"fc1": rng.choice((1, 3, 99))}}, {"tolerance": rng.choice((0.001, 0.3, 0.9))},
        {"energy": rng.choice((0.5, 0.999))}, {"budget": rng.choice((0.01, 0.05, 0.5, 0.99))},
        {"modes": {"fc1": rng.choice(([[8, 8], [4, 4]], [[3, 3], [4, 4]], [[64], [16]]))}},
        {"modes": {"fc1": [[4, 4, 4], [4, 2, 2]]}, "ranks": {"fc1": rng.choice(([2, 2], [2], 2))}},
        {"max_drop": rng.choice((0, 5.0, 100.0))}, {"num_cores": rng.choice((2, 3, 4, 5))},
    ))  # fmt: skip
    patterns = {"include": rng.choice((("*",), ("fc1",), ("fc[12]",), ("conv*",)))}
    options = {
        "method": rng.choice(("tensor_train", "svd", "interpolative", "tucker", "cp")),
        "whitening": rng.choice(["none", "none", "input", "two_sided"]),
        "compensation": rng.choice(["none", "none", "sequential"]),
    }
    return Compression(rng.choice((1, 2, 4, 16)), **wish, **patterns, **options)


def quantization(rng):
    return Quantization(
        bits=rng.choice((2, 3, 4, 8)),
        mode=rng.choice(("qat", "ptq")),
        layers=rng.choice((None, {"fc1": 0}, {"fc*": 8}, {"nowhere": 4})),
        grid=rng.choice(("symmetric", "affine", "half_integer", "ternary")),
        granularity=rng.choice(("tensor", "channel", 5, 10_000)),
        core_start=rng.choice(("nearest", "gauge")),
        activation_bits=rng.choice((None, 8)),
        other_bits=rng.choice((4, 16, 32)),
        batch_norm=rng.choice(("freeze", "keep", "fold")),
        entropy=rng.choice((0.0, 0.01)),
        learning_rate=rng.choice((None, 1e-3)),
        num_calibration=rng.choice((1, 64)),
    )


def rungs(rng):
    ranks = sorted({rng.choice((1, 2, 3, 4, 5, 6, 64)) for _ in range(3)}, reverse=True)
    steps = [{"rank": rank, "alpha": rng.choice((None, None, 0.5))} for rank in ranks]
    method, include = (
        rng.choice(("tensor_train", "svd", "tucker")),
        rng.choice((("*",), ("fc1",), ("conv*",))),
    )
    how = Compression(4, method=method, include=include)
    return MultiStage(steps, objective(rng), 1, how, rng.choice(("round", "fresh")), teacher_of(rng))


def teacher_of(rng):
    return rng.choice(("original", "previous", "both"))


STAGES = {
    "fit": lambda rng: Fit(objective(rng), rng.choice((0, 1)), teacher_of(rng), rng.choice((None, 1e-3, 1e4))),
    "factorize": lambda rng: Factorize(
        compression(rng), rng.choice(("student", "teacher")), rng.choice(("decomposed", "random"))
    ),
    "multi_stage": rungs,
    "admm": lambda rng: Admm(objective(rng), 1, compression(rng), rng.choice((1e-3, 10.0)), rng.choice((1, 50))),
    "matched_dense": lambda rng: MatchedDense(compression(rng)),
    "quantize": lambda rng: Quantize(quantization(rng), objective(rng), rng.choice((0, 1)), None, teacher_of(rng)),
    "fit_layers": lambda rng: FitLayers(rng.choice((1, 30)), rng.choice((1, 64)), rng.choice((1, 32)), 1e-3),
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return synthetic(
        name="blobs", num_classes=4, input_shape=[1, 8, 8], num_train=70, num_test=8, separation=0.5, data_seed=0,
        validation_fraction=0.2, validation_count=None, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip


def recipe():
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
    return Recipe(1, 16, optimizer, functools.partial(cosine, warmup_epochs=0.0))


def model(seed):
    options = {"hidden": [16, 16], "num_classes": 4, "input_shape": [1, 8, 8]}
    return build("compresskd.models.mlp.MLP", options, seed=seed)


def accepted(stages, data):
    """Whether a run of these stages would be begun."""
    state, example = State(model(0), model(1)), next(iter(data.validation.batches(2))).inputs
    for name, stage in stages.items():
        try:
            state = stage.check(state, example) if hasattr(stage, "check") else state
            if hasattr(stage, "training"):
                try_training(name, stage.training, state, data, recipe(), DEVICE)
        except (ValueError, NothingCompressed):
            return False
    return True


def carried_out(stages, data, folder):
    """Run the stages, each on what the one before it leaves."""
    student, state = model(0), State(model(0), model(1).eval().requires_grad_(False))
    run = open_run(folder)
    try:
        run.start(Experiment(data, lambda: student, Strategy("s", stages), recipe(), 0, DEVICE)._record())
        context = Context(
            data, run, recipe(), 0, DEVICE, Reporter(), reference=lambda: copy.deepcopy(student)
        )
        for name, stage in stages.items():
            context.begin(name)
            state = stage(state, context)
    finally:
        run.close()
    with torch.no_grad():
        return state.student.eval()(next(iter(data.validation.batches(2))).inputs)


def outcome(stages, data, folder):
    """The logits, or the words of a failure."""
    try:
        return carried_out(stages, data, folder), ""
    except (ValueError, NothingCompressed) as error:
        return None, str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_what_is_accepted_is_carried_out(kind, data, tmp_path):
    before = {"factorize": Factorize(Compression(2), "teacher")} if kind == "fit_layers" else {}
    counts = {True: 0, False: 0}
    for seed in range(10 * NUM_DRAWS):
        if sum(counts.values()) == NUM_DRAWS:
            break
        try:
            stage = STAGES[kind](random.Random(f"{kind}/{seed}"))
            stages = Strategy("s", {**before, "stage": stage}).stages
        except ValueError:
            continue  # refused as it is made
        is_accepted = accepted(stages, data)
        counts[is_accepted] += 1
        if not is_accepted:
            continue
        logits, failure = outcome(stages, data, tmp_path / str(seed))
        if failure:
            assert any(words in failure for words in TOLD_BY_WEIGHTS), (seed, stage, failure)
            continue
        assert logits.shape == (2, 4), (seed, stage)
        assert bool(logits.isfinite().all()), (seed, stage)
    assert counts[True] >= 2, counts

import numpy as np
import pytest

from compresskd.compare.comparison import Options, compare
from compresskd.compare.keys import UnknownKeyError
from compresskd.compare.pairing import MAX_PAIRS, against_reference
from compresskd.compare.predictions import PredictionsError, read_scores
from compresskd.compare.statistics import mcnemar
from compresskd.compare.study import load

N = 200


def right(*wrong):
    found = np.ones(N, dtype=bool)
    found[list(wrong)] = False
    return found


def paired(folder, **options):
    return against_reference(compare(load([folder]), Options(**options)))


@pytest.fixture
def two(tmp_path, run):
    """Group b errs on samples 0..9, group a on 5..29: 20 against 5 discordant ones, in two seeds."""
    for seed in (0, 1):
        run(tmp_path / f"a{seed}", right=right(*range(5, 30)), seed=seed, config__seed=seed, config__rank=4)
        run(tmp_path / f"b{seed}", right=right(*range(10)), seed=seed, config__seed=seed, config__rank=8)
    return tmp_path


def test_difference_mcnemar_and_interval(two):
    found = paired(two)
    assert found.reference is not None
    assert found.reference.values == ("8",)
    assert found.why == "the best test accuracy"
    (test,) = found.tests
    assert test.pairs == 2
    assert test.impossible is None
    assert test.bootstrap is not None
    assert test.bootstrap.difference == pytest.approx(-15 / N)
    assert test.bootstrap.low < -15 / N < test.bootstrap.high < 0
    assert test.p_holm == test.bootstrap.p_value < 0.01
    assert [(one.unit, one.group_only, one.reference_only) for one in test.mcnemar] == [
        ("0", 5, 20),
        ("1", 5, 20),
    ]
    assert test.mcnemar[0].p_value == pytest.approx(mcnemar(5, 20))
    assert test.over_seeds is not None
    assert test.over_seeds.mean == pytest.approx(-15 / N)


def test_holm_over_several_groups(two, run):
    for rank in (16, 32):
        for seed in (0, 1):
            run(
                two / f"{rank}{seed}",
                right=right(*range(12)),
                seed=seed,
                config__seed=seed,
                config__rank=rank,
            )
    tests = {test.group.values[0]: test for test in paired(two).tests}
    worst = tests["4"]
    assert worst.bootstrap is not None
    assert worst.p_holm == pytest.approx(3 * worst.bootstrap.p_value)
    assert worst.mcnemar[0].p_holm == pytest.approx(3 * mcnemar(5, 20))


def test_only_common_seeds_are_paired_and_the_rest_is_told(two, run):
    run(two / "a7", right=right(1), seed=7, config__seed=7, config__rank=4)
    (test,) = paired(two, reference="rank=8").tests
    assert test.pairs == 2
    assert test.notes == ("1 run without a partner of the same seed",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5, "config__seed": 5}, "no seed in common (seeds 5; the reference has 0, 1)"),
        ({"data__test_fingerprint": "t9"}, "other test set (t9, the reference t0)"),
        ({"data__test_fingerprint": None}, "a record has no test_fingerprint"),
        ({"right": None}, "no predictions.npz"),
        ({"right": np.ones(N // 2)}, "targets differ"),
        ({"status": "failed"}, "no run that counts (failed)"),
    ],
)
def test_impossible_pairings_say_why(two, run, changes, said):
    run(two / "c", **({"right": right(3, 4), "config__rank": 99} | changes))
    tests = {test.group.values[0]: test for test in paired(two, reference="rank=8").tests}
    assert tests["99"].pairs == 0
    assert said in (tests["99"].impossible or "")
    assert tests["4"].pairs == 2


def test_predictions_that_contradict_the_record_are_not_used(two, run):
    folder = run(two / "c", right=right(3), config__rank=99)
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(text.replace('"test_accuracy": 0.995', '"test_accuracy": 0.999'))
    found = {test.group.values[0]: test for test in paired(two, reference="rank=8").tests}
    assert "its predictions are right in 99.50%, recorded are 99.90%" in (found["99"].impossible or "")


@pytest.mark.parametrize("damage", ["truncated", "text", "stage", "shape", "floats", "pickle", "directory"])
def test_damaged_predictions_are_refused(tmp_path, damage):
    path, good = tmp_path / "predictions.npz", np.zeros(5, dtype=np.uint8)
    arrays = {
        "stage": {"other": good, "targets": good},
        "shape": {"distill": good[:3], "targets": good},
        "floats": {"distill": good.astype(float), "targets": good},
        "pickle": {"distill": np.array([{}, {}], dtype=object), "targets": good},
    }
    if damage == "directory":
        path.mkdir()
    elif damage == "text":
        path.write_text("no archive")
    else:
        np.savez(path, **arrays.get(damage, {"distill": good, "targets": good}))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PredictionsError, match=r"predictions\.npz"):
        read_scores(tmp_path, "distill")


def test_the_baseline_is_the_reference_where_there_is_one(two, run):
    run(
        two / "base",
        right=right(*range(50)),
        strategy="train",
        config__strategy__name="train",
        config__rank=4,
    )
    found = paired(two)
    assert found.why == "the baseline (strategy=train)"
    assert paired(two, reference="best").reference is not found.reference


def test_the_baseline_is_in_floating_point_where_some_are(two, run):
    common = {"strategy": "train", "config__strategy__name": "train", "config__rank": 4}
    run(two / "float", right=right(*range(50)), config__bits=None, **common)
    run(two / "rounded", right=right(*range(40)), config__bits=4, stages__0__kind="Quantize", **common)
    found = paired(two)
    assert found.why == "the baseline (strategy=train)"
    assert found.reference.mean("test_accuracy") == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("baseline", "no finished group of strategy=train"),
        ("rank=5", "no finished group is 'rank=5'; there is: rank=8; rank=4"),
        ("strategy=distill", "fits 2 groups, say more: rank=8; rank=4"),
        ("worst", "expected best, baseline or KEY=VALUE"),
        ("rnak=8", "no record has 'rnak'; did you mean rank"),
    ],
)
def test_references_that_name_no_group(two, reference, said):
    with pytest.raises(UnknownKeyError, match=said):
        paired(two, reference=reference)


def test_groups_of_by_are_paired_within_the_keys_left_open(two, run):
    for seed in (0, 1):
        for rank in (4, 8):
            run(two / f"t{rank}{seed}", right=right(*range(40)), strategy="train", seed=seed, config__seed=seed,
                config__rank=rank)  # fmt: skip
    (test,) = paired(two, by=("strategy",)).tests
    assert test.pairs == 4
    assert [one.unit for one in test.mcnemar] == ["0 4", "0 8", "1 4", "1 8"]


def test_very_many_pairs_are_thinned_evenly(tmp_path, run):
    for seed in range(MAX_PAIRS + 10):
        for rank in (4, 8):
            run(
                tmp_path / f"{rank}-{seed}",
                right=right(*range(rank)),
                seed=seed,
                config__seed=seed,
                config__rank=rank,
            )
    (test,) = paired(tmp_path).tests
    assert test.pairs == MAX_PAIRS
    assert test.notes == (f"{MAX_PAIRS} of {MAX_PAIRS + 10} pairs, evenly chosen",)

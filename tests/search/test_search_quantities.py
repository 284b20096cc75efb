"""Objectives and bounds as users write them."""

import pytest
from refusals import says

from compresskd.options import OptionError
from compresskd.search.quantities import bound, known, objective

CLASSES = known({"monitor": "accuracy", "metrics": {"accuracy": {"percent": True}}})
TEXTS = known({"monitor": "perplexity", "metrics": {"perplexity": {"higher_is_better": False}}})


def test_a_signed_number_counts_from_the_teacher():
    points = bound("accuracy>=-1.0", "goal", CLASSES)
    assert points.limit({"accuracy": 0.98}) == pytest.approx(0.97)
    assert points.excess({"accuracy": 0.97}, {"accuracy": 0.98}) <= 0
    assert points.excess({"accuracy": 0.96}, {"accuracy": 0.98}) == pytest.approx(0.01)
    percent = bound("perplexity<=+2%", "goal", TEXTS)
    assert percent.limit({"perplexity": 50.0}) == pytest.approx(51.0)
    assert bound("bytes<=-90%", "goal", CLASSES).limit({"bytes": 1000.0}) == pytest.approx(100)


def test_an_unsigned_number_is_the_limit():
    assert bound("accuracy>=95", "goal", CLASSES).limit({}) == pytest.approx(0.95)
    assert bound("bytes <= 50,000", "--where", CLASSES).limit({}) == 50_000
    assert bound("loss<=0.5", "goal", CLASSES).limit({}) == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy", "quotes"),
        ("", "nothing"),
        ("accuracy>=0.95", "percent"),
        ("accuracy>=195", "percent"),
        ("accuracy<=95", "more"),
        ("bytes>=5", "less"),
        ("bytes<=-5", "percent"),
        ("bytes<=5%", "signed"),
        ("test_accuracy>=95", "validation"),
        ("acuracy>=95", "accuracy"),
        ("bytes<=1.2.3", "number"),
    ],
)
def test_what_is_no_bound_is_refused(text, said):
    with pytest.raises(OptionError, match=says("goal", said)):
        bound(text, "goal", CLASSES)


def test_a_figure_is_made_best_in_its_own_direction():
    assert objective("validation_accuracy", True, "--maximize", CLASSES).cost({"accuracy": 0.9}) == -0.9
    assert objective("bytes", False, "--minimize", CLASSES).cost({"bytes": 7.0}) == 7.0
    for name, maximize, key, right in (
        ("accuracy", False, "--minimize", "--maximize accuracy"),
        ("bytes", True, "--maximize", "--minimize bytes"),
        ("test_accuracy", True, "--maximize", "validation"),
    ):
        with pytest.raises(OptionError, match=says(key, right)):
            objective(name, maximize, key, CLASSES)

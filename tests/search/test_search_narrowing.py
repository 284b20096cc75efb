"""How a goal is looked for, on networks that are formulas."""

import pytest

from compresskd.run import FAILED, FINISHED, RUNNING
from compresskd.search.front import chosen
from compresskd.search.narrowing import Arm, Narrowing
from compresskd.search.quantities import bound, known, objective
from compresskd.search.trials import Question, Trial

KNOWN = known({"monitor": "accuracy", "metrics": {"accuracy": {"percent": True}}})
TEACHER = {"accuracy": 0.98, "bytes": 100_000.0}
ARMS = [
    Arm({"strategy": strategy, "bits": bits}, "rank", 1, 64, float(bits), 1.0, True)
    for bits in ("3", "2", "4")
    for strategy in ("a", "b")
]
EPOCHS = ("6", "30")


def question(goal, way, name):
    return Question((), (objective(name, way == "maximize", way, KNOWN),), (bound(goal, "goal", KNOWN),))


def network(point):
    """Figures of a point: more rank, bits and epochs are better; strategy b is the better one."""
    rank, bits = int(point["rank"]), int(point["bits"])
    worth = rank * {2: 0.8, 3: 1.0, 4: 1.1}[bits] * (1.5 if point["strategy"] == "b" else 1.0)
    worth *= 1.3 if point.get("epochs") == "30" else 1.0
    return {"accuracy": 0.98 - 0.1 / worth, "bytes": 200.0 * rank * bits}


def looked_for(asked, arms=ARMS, epochs=EPOCHS, fails=lambda point: False, most=60):
    trials = []
    narrowing = Narrowing(asked, arms, epochs, trials)
    while (point := narrowing.ask(len(trials), len(trials) / 24)) is not None:
        found = Trial(len(trials), dict(point), "t", state=FINISHED, figures=network(point), teacher=TEACHER)
        if fails(point):
            found.state, found.figures = FAILED, {}
        trials.append(found)
        assert len(trials) <= most
    return trials


def test_the_smallest_that_is_good_enough_is_found_in_few_trials():
    asked = question("accuracy>=-1.0", "minimize", "bytes")
    trials = looked_for(asked)
    best = chosen(trials, asked)
    everywhere = [
        network({"strategy": s, "bits": b, "rank": r, "epochs": "30"})
        for s in "ab" for b in "234" for r in range(1, 65)
    ]  # fmt: skip
    least = min(each["bytes"] for each in everywhere if each["accuracy"] >= 0.97)
    assert best.figures["bytes"] <= 1.25 * least
    assert len(trials) <= 22
    points = [tuple(trial.point.items()) for trial in trials]
    assert len(set(points)) == len(points)


def test_the_best_that_fits_uses_up_what_is_allowed():
    asked = question("bytes<=12000", "maximize", "accuracy")
    trials = looked_for(asked)
    best = chosen(trials, asked)
    assert 0.85 * 12_000 <= best.figures["bytes"] <= 12_000
    assert best.point["epochs"] == "30"
    assert best.point["strategy"] == "b"
    assert len(trials) <= 24


def test_short_trainings_leave_a_share_for_full_ones_which_begin_where_they_gain_most():
    """Trainings of 30 epochs make up for so much that the smallest that meets the goal fails it in short ones."""

    def hard(point):
        found = network(point)
        return {**found, "accuracy": found["accuracy"] - (0.015 if point["epochs"] == "6" else 0.0)}

    asked, trials = question("accuracy>=-1.0", "minimize", "bytes"), []
    narrowing = Narrowing(asked, ARMS, EPOCHS, trials)
    while len(trials) < 24 and (point := narrowing.ask(len(trials), len(trials) / 24)) is not None:
        trials.append(
            Trial(len(trials), dict(point), "t", state=FINISHED, figures=hard(point), teacher=TEACHER)
        )
    lengths = [trial.point["epochs"] for trial in trials]
    assert lengths == sorted(lengths, key=int)
    assert lengths.count("6") <= 15 < len(trials)
    least = min(
        200.0 * rank * bits
        for bits in (2, 3, 4)
        for rank in range(1, 65)
        if hard({"strategy": "b", "bits": str(bits), "rank": rank, "epochs": "30"})["accuracy"] >= 0.97
    )
    assert chosen(trials, asked).figures["bytes"] <= 1.25 * least


def test_a_goal_that_nothing_meets_ends():
    asked = question("accuracy>=99.9", "minimize", "bytes")
    assert chosen(looked_for(asked), asked) is None


def test_arms_that_fail_are_left_after_few_trials():
    asked = question("accuracy>=-1.0", "minimize", "bytes")
    trials = looked_for(asked, fails=lambda point: point["strategy"] == "b")
    assert chosen(trials, asked).point["strategy"] == "a"


def test_where_the_size_is_settled_each_arm_is_one_point():
    asked = question("accuracy>=-1.0", "minimize", "bytes")
    arms = [Arm({"bits": bits}) for bits in ("2", "4")]
    trials = []
    narrowing = Narrowing(asked, arms, (), trials)
    for _ in arms:
        point = narrowing.ask(len(trials), len(trials) / 24)
        figures = {"accuracy": 0.98, "bytes": 10.0}
        trials.append(Trial(len(trials), dict(point), "t", state=FINISHED, figures=figures, teacher=TEACHER))
    assert [trial.point["bits"] for trial in trials] == ["2", "4"]
    assert narrowing.ask(2, 0.0) is None


@pytest.mark.parametrize(
    "goal", [("accuracy>=-1.0", "minimize", "bytes"), ("bytes<=9000", "maximize", "accuracy")]
)
def test_several_workers_look_at_different_arms(goal):
    trials = []
    narrowing = Narrowing(question(*goal), ARMS, EPOCHS, trials)
    while (point := narrowing.ask(len(trials), len(trials) / 24)) is not None:
        trials.append(Trial(len(trials), dict(point), "t", state=RUNNING))
    arms = {(trial.point["strategy"], trial.point["bits"]) for trial in trials}
    assert len(arms) == len(trials) == len(ARMS)

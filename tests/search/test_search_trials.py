"""What Optuna proposes, what is pruned, which trials are on the front, and what search.json keeps."""

import json

import pytest

from compresskd.metric import ACCURACY
from compresskd.run import FINISHED, PRUNED, RUNNING, RunDirectoryError
from compresskd.search.front import chosen, front, nearest
from compresskd.search.pruning import Pruning
from compresskd.search.quantities import bound, known, objective
from compresskd.search.report import front_table
from compresskd.search.sampler import Sampler
from compresskd.search.space import parse
from compresskd.search.trials import FILE, Question, Search, Trial, read_search

KNOWN = known({"monitor": "accuracy", "metrics": {"accuracy": {"percent": True}}})
BOTH = (objective("accuracy", True, "--maximize", KNOWN), objective("bytes", False, "--minimize", KNOWN))
SPACE = tuple(parse(["rank=int(1,8)", "bits=choice(2,4)"])[0])
QUESTION = Question(SPACE, BOTH)


def trial(number, accuracy, size, state=FINISHED, **point):
    figures = {"accuracy": accuracy, "bytes": size}
    return Trial(number, point or {"rank": "1", "bits": "2"}, f"t{number}", str(number), state, figures)


def tried(sampler, trials, count):
    """Ask for so many points, and tell figures that follow from them."""
    for number in range(len(trials), len(trials) + count):
        point = sampler.ask(number, 0.0)
        rank, bits = int(point["rank"]), int(point["bits"])
        found = trial(number, 1 - 1 / (rank + bits), 100.0 * rank * bits, **point)
        trials.append(found)
        sampler.tell(found)
    return trials


def test_no_point_is_tried_twice_and_a_small_space_is_exhausted():
    sampler = Sampler(QUESTION, 0)
    trials = tried(sampler, [], 16)
    assert len({tuple(each.point.values()) for each in trials}) == 16
    assert sampler.ask(16, 0.0) is None


def test_a_killed_search_goes_on_with_the_points_that_it_would_have_tried():
    whole = tried(Sampler(QUESTION, 3), [], 14)
    begun = tried(Sampler(QUESTION, 3), [], 12)
    again = Sampler(QUESTION, 3)
    for each in begun:
        again.add(each)
    assert [t.point for t in tried(again, begun, 2)] == [t.point for t in whole]


def test_bounds_draw_the_search_to_where_they_are_kept():
    question = Question(
        tuple(parse(["rank=int(1,200)"])[0]), BOTH[:1], (bound("bytes<=1000", "--where", KNOWN),)
    )
    sampler, trials = Sampler(question, 0), []
    for number in range(30):
        point = sampler.ask(number, 0.0)
        trials.append(trial(number, int(point["rank"]) / 200, 100.0 * int(point["rank"]), **point))
        sampler.tell(trials[-1])
    assert sum(each.figures["bytes"] <= 2000 for each in trials[15:]) > 3  # one or two by chance
    assert chosen(trials, question).figures["bytes"] <= 1000


def test_failed_pruned_and_running_trials_can_be_taken_up_again():
    sampler = Sampler(Question(SPACE, BOTH[:1]), 0)
    for number, state in enumerate((FINISHED, PRUNED, "failed", RUNNING)):
        sampler.add(trial(number, 0.5, 10, state, rank=str(number + 1), bits="2"))
    assert sampler.ask(4, 0.0) is not None


def test_the_front_holds_what_nothing_beats_and_the_first_objective_chooses():
    trials = [
        trial(0, 0.9, 100),
        trial(1, 0.8, 50),
        trial(2, 0.85, 120),
        trial(3, 0.9, 90),
        trial(4, 0.99, 1, "failed"),
        trial(5, 0.8, 50),
    ]
    assert [each.number for each in front(trials, QUESTION)] == [3, 1]
    bounded = Question(SPACE, BOTH, (bound("bytes<=60", "--where", KNOWN),))
    assert chosen(trials, bounded).number == 1
    nothing = Question(SPACE, BOTH, (bound("bytes<=10", "--where", KNOWN),))
    assert chosen(trials, nothing) is None
    assert nearest(trials, nothing).number == 1


def test_trials_behind_the_median_of_the_same_stage_are_given_up():
    pruning = Pruning(ACCURACY)
    for number in range(5):
        lines = [{"stage": "distill", "epoch": e, "validation_accuracy": 0.9} for e in range(4)]
        assert not any(pruning.report(number, "s", "distill", e["epoch"], 0.9) for e in lines)
        pruning.end(number, lines, "s", complete=True)
    assert not pruning.report(9, "s", "distill", 0, 0.1)  # the first epoch says little
    assert pruning.report(9, "s", "distill", 2, 0.1)
    assert not pruning.report(9, "other", "distill", 2, 0.1)
    assert not pruning.report(9, "s", "quantize", 2, 0.1)
    assert not pruning.report(8, "s", "distill", 2, 0.95)


def test_a_search_is_read_back_as_it_was_written(tmp_path):
    search = Search(tmp_path, {"kind": "search"}, [trial(0, 0.9, 10)], 3.5, {"chosen": "trial_0"})
    search.save()
    assert read_search(tmp_path) == search
    assert json.loads((tmp_path / FILE).read_text())["num_trials"] == 1
    table = front_table(search, QUESTION)
    assert [cell.text for cell in table.rows[0]] == ["trial_0", "1", "2", "90.00", "10", "t0"]
    assert "1 trial (1 finished)" in table.notes[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 9, "trials": []}', '{"schema": 1, "trials": [{"x": 1}]}']
)
def test_what_is_no_search_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunDirectoryError, match=r"search.json"):
        read_search(tmp_path)


def test_a_search_whose_folder_was_taken_over_writes_nothing_more(tmp_path):
    def lost():
        raise RunDirectoryError("it was removed")

    with pytest.raises(RunDirectoryError, match="removed"):
        Search(tmp_path, {}, check=lost).save()
    assert not (tmp_path / FILE).exists()

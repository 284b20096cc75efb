"""Nodes judged by the signature of what they name, without a call."""

from typing import TypedDict, Unpack

import pytest

from compresskd.options import OptionError
from compresskd.targets.nodes import UNMADE, Maker
from compresskd.targets.paths import resolve


class Options(TypedDict, total=False):
    seed: int
    fraction: float | None


def plain(size: int, ratio: float = 0.5, names: list[str] | None = None, flag: bool = False):
    raise AssertionError("was called")


def unpacking(name: str, **options: Unpack[Options]):
    raise AssertionError("was called")


def anything(**options):
    raise AssertionError("was called")


class Thing:
    def __init__(self, size: int):
        if size > 9:
            raise OptionError("size", size, "<= 9")
        self.size = size


def maker():
    return Maker(lambda path, _: resolve(path))


def judged(node):
    judge = maker()
    judge.make(node, "node", call=False)
    return judge.errors


def faults(_target_, **options):
    return [str(fault) for fault in judged({"_target_": f"{__name__}.{_target_}", **options})]


@pytest.mark.parametrize(
    "options",
    [
        {"size": 3},
        {"size": 3, "ratio": 1},
        {"size": 3, "names": None},
        {"size": 3, "names": ["a"], "flag": True},
    ],
)
def test_good_values(options):
    assert faults("plain", **options) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "node.size: is missing; "),
        ({"size": 3, "raito": 1}, f"node.raito: unknown option of {__name__}.plain; did you mean ratio?"),
        ({"size": 3.0}, "node.size: got 3.0, expected a whole number"),
        ({"size": True}, "node.size: got true, expected a whole number"),
        ({"size": 3, "ratio": "x"}, "node.ratio: got 'x', expected a number"),
        ({"size": 3, "names": "a"}, "node.names: got 'a', expected a list: [a, b]"),
        ({"size": 3, "flag": 1}, "node.flag: got 1, expected true or false"),
        ({"size": "???"}, "node.size: is missing; "),
    ],
)
def test_bad_values(options, expected):
    (fault,) = faults("plain", **options)
    assert fault.startswith(expected)


def test_keywords_of_a_typed_dict_are_known():
    assert faults("unpacking", name="a", seed=1, fraction=None) == []
    assert faults("unpacking", name="a", seed="x") == ["node.seed: got 'x', expected a whole number"]
    assert "did you mean fraction?" in faults("unpacking", name="a", fracton=1.0)[0]


def test_any_keyword_is_taken_where_the_signature_says_so():
    assert faults("anything", whatever=1) == []


def test_nodes_inside_lists_and_options_are_judged():
    inner = {"_target_": f"{__name__}.plain", "size": "x"}
    node = {"_target_": f"{__name__}.anything", "parts": [inner], "more": {"deep": inner}}
    assert [error.field for error in judged(node)] == ["node.parts[0].size", "node.more.deep.size"]


def test_partial_may_lack_arguments():
    assert faults("plain", _partial_=True) == []


def test_what_a_node_makes_is_made_innermost_first():
    inner = {"_target_": f"{__name__}.Thing", "size": 3}
    made = maker().make({"one": inner, "all": [inner, 4]}, "node")
    assert (made["one"].size, made["all"][0].size, made["all"][1]) == (3, 3, 4)


def test_a_failure_has_the_key_of_the_option_that_it_names():
    builder = maker()
    bad, good = ({"_target_": f"{__name__}.Thing", "size": size} for size in (10, 3))
    assert builder.make({"one": bad, "all": [good, bad]}, "node") is UNMADE
    assert [str(fault) for fault in builder.errors] == [
        "node.one.size: got 10, expected <= 9",
        "node.all[1].size: got 10, expected <= 9",
    ]

"""Nodes judged by the signature of what they name, without a call."""

from typing import TypedDict, Unpack

import pytest
from refusals import fault

from compresskd.config.signature import check_calls


class Options(TypedDict, total=False):
    seed: int
    fraction: float | None


def plain(size: int, ratio: float = 0.5, names: list[str] | None = None, flag: bool = False):
    raise AssertionError("was called")


def unpacking(name: str, **options: Unpack[Options]):
    raise AssertionError("was called")


def anything(**options):
    raise AssertionError("was called")


def faults(_target_, **options):
    return [str(fault) for fault in check_calls({"_target_": f"{__name__}.{_target_}", **options}, "node")]


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
        ({}, fault("node.size", "missing")),
        ({"size": 3, "raito": 1}, fault("node.raito", "unknown option", f"{__name__}.plain", "ratio?")),
        ({"size": 3.0}, fault("node.size", "3.0")),
        ({"size": True}, fault("node.size", "True")),
        ({"size": 3, "ratio": "x"}, fault("node.ratio", "x", "number")),
        ({"size": 3, "names": "a"}, fault("node.names", "a", "list", "null")),
        ({"size": 3, "flag": 1}, fault("node.flag", "1", "true", "false")),
        ({"size": "???"}, fault("node.size", "missing")),
    ],
)
def test_bad_values(options, expected):
    (told,) = faults("plain", **options)
    assert expected.search(told)


def test_keywords_of_a_typed_dict_are_known():
    assert faults("unpacking", name="a", seed=1, fraction=None) == []
    (told,) = faults("unpacking", name="a", seed="x")
    assert fault("node.seed", "x").search(told)
    assert "did you mean fraction?" in faults("unpacking", name="a", fracton=1.0)[0]


def test_any_keyword_is_taken_where_the_signature_says_so():
    assert faults("anything", whatever=1) == []


def test_nodes_inside_lists_and_options_are_judged():
    inner = {"_target_": f"{__name__}.plain", "size": "x"}
    node = {"_target_": f"{__name__}.anything", "parts": [inner], "more": {"deep": inner}}
    assert [fault.key for fault in check_calls(node, "node")] == ["node.parts[0].size", "node.more.deep.size"]


def test_partial_may_lack_arguments():
    assert faults("plain", _partial_=True) == []

"""Nodes judged by the signature of what they name, without a call."""

from typing import TypedDict, Unpack

import pytest

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
        ({}, "node.size: is missing; "),
        ({"size": 3, "raito": 1}, f"node.raito: unknown option of {__name__}.plain; did you mean ratio?"),
        ({"size": 3.0}, "node.size: came 3.0 (float); allowed: whole number"),
        ({"size": True}, "node.size: came True (bool); allowed: whole number"),
        ({"size": 3, "ratio": "x"}, "node.ratio: came 'x' (str); allowed: number"),
        ({"size": 3, "names": "a"}, "node.names: came 'a' (str); allowed: list: [a, b], null"),
        ({"size": 3, "flag": 1}, "node.flag: came 1 (int); allowed: true or false"),
        ({"size": "???"}, "node.size: is missing; write a whole number"),
    ],
)
def test_bad_values(options, expected):
    (fault,) = faults("plain", **options)
    assert fault.startswith(expected)


def test_keywords_of_a_typed_dict_are_known():
    assert faults("unpacking", name="a", seed=1, fraction=None) == []
    assert faults("unpacking", name="a", seed="x") == ["node.seed: came 'x' (str); allowed: whole number"]
    assert "did you mean fraction?" in faults("unpacking", name="a", fracton=1.0)[0]


def test_any_keyword_is_taken_where_the_signature_says_so():
    assert faults("anything", whatever=1) == []


def test_nodes_inside_lists_and_options_are_judged():
    inner = {"_target_": f"{__name__}.plain", "size": "x"}
    node = {"_target_": f"{__name__}.anything", "parts": [inner], "more": {"deep": inner}}
    assert [fault.key for fault in check_calls(node, "node")] == ["node.parts[0].size", "node.more.deep.size"]


def test_partial_may_lack_arguments():
    assert faults("plain", _partial_=True) == []

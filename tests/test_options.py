"""Values judged by annotations: what is refused, at which path, in which words; all that is shipped is judged."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypedDict, Unpack

import pytest

import compresskd
from compresskd.options import (
    Count,
    OptionError,
    OptionErrors,
    Share,
    checked,
    hints_of,
    one_of,
    raise_all,
    within,
)


class Part:
    pass


class Sized(Protocol):
    size: int


class More(TypedDict, total=False):
    seed: int


@checked
@dataclass(frozen=True)
class Thing:
    rank: Count = 1
    ranks: Mapping[str, Count | Sequence[Count]] | None = None
    share: Share | None = None
    kind: Annotated[str, one_of("a", "b")] = "a"
    bits: Literal[0, 1, 2] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    part: Part | None = None
    parts: Mapping[str, Sized] | None = None
    make: Callable[..., Any] = Part
    flag: bool = False


@checked
def function(name: str, **options: Unpack[More]) -> str:
    return name


GOOD = [
    {"rank": 3}, {"ranks": {"fc*": 2, "conv": [1, 2]}}, {"share": 0.5}, {"share": None}, {"pair": [1, 2]},
    {"pair": (1, 2)}, {"part": Part()}, {"parts": {"a": Part()}}, {"bits": 1}, {"kind": "b"},
]  # fmt: skip
BAD = {
    "range": ({"rank": 0}, "rank: got 0, expected >= 1"),
    "type": ({"rank": "x"}, "rank: got 'x', expected a whole number"),
    "true is no number": ({"rank": True}, "rank: got true, expected a whole number"),
    "true is no literal": ({"bits": True}, "bits: got true, expected 0, 1 or 2"),
    "null": ({"rank": None}, "rank: got null, expected a whole number"),
    "nan": ({"share": float("nan")}, "share: got nan, expected a finite number"),
    "text of a list": ({"pair": "ab"}, "pair: got 'ab', expected a list: [a, b]"),
    "in a list": ({"pair": [1, "x"]}, "pair[1]: got 'x', expected a number"),
    "in a mapping": ({"ranks": {"fc": 0}}, "ranks.fc: got 0, expected >= 1 or a list: [a, b]"),
    "in a list of a mapping": ({"ranks": {"fc": [2, 0]}}, "ranks.fc[1]: got 0, expected >= 1"),
    "few words": ({"kind": "c"}, "kind: got 'c', expected a, b"),
    "an object": ({"part": 3}, "part: got 3, expected a node whose _target_ makes a Part"),
    "another object": ({"part": Thing()}, "part: got Thing("),
    "objects": ({"parts": {"a": 3}}, "parts.a: got 3, expected a node whose _target_ makes a Sized"),
}


@pytest.mark.parametrize("options", GOOD, ids="-".join)
def test_good_values(options):
    assert Thing(**options)


@pytest.mark.parametrize(("options", "text"), BAD.values(), ids=BAD)
def test_bad_values(options, text):
    with pytest.raises(OptionError) as raised:
        Thing(**options)
    assert str(raised.value).startswith(text)


def test_all_values_are_told_of_at_once():
    with pytest.raises(OptionErrors) as raised:
        Thing(rank=0, kind="c", flag=1)
    assert [error.field for error in raised.value.errors] == ["rank", "kind", "flag"]
    assert len(str(raised.value).splitlines()) == 3


def test_keywords_of_a_typed_dict_are_judged():
    assert function("a", seed=1) == "a"
    with pytest.raises(OptionError, match=r"^seed: got 'x', expected a whole number$"):
        function("a", seed="x")


def test_an_option_of_the_name_that_others_give_their_keywords_is_one_value():
    @checked
    def made(*, name: str, options: dict[str, int] | None = None) -> Any:
        return options

    assert made(name="a") is None
    assert made(name="a", options=None) is None
    assert made(name="a", options={"name": 3}) == {"name": 3}


def test_what_holds_an_object_adds_to_the_path():
    with pytest.raises(OptionErrors) as raised, within("stages.one"), within("compression"):
        raise_all([OptionError("rank", 0, ">= 1"), OptionError("", 0, "more")])
    assert [error.field for error in raised.value.errors] == [
        "stages.one.compression.rank",
        "stages.one.compression",
    ]


def test_a_long_value_is_cut():
    assert len(str(OptionError("rank", list(range(1000)), "one"))) < 120


def _checked():
    for module in pkgutil.walk_packages(compresskd.__path__, "compresskd."):
        if not module.name.endswith("__main__") and not module.name.startswith("compresskd.export"):
            for name, found in vars(importlib.import_module(module.name)).items():
                call = found.__init__ if inspect.isclass(found) else found
                own = getattr(found, "__module__", "") == module.name
                if own and getattr(getattr(call, "__code__", None), "co_name", "") == "checking":
                    yield f"{module.name}.{name}", found


def test_the_annotations_of_everything_that_is_checked_resolve():
    """Where they did not, nothing would be judged, and nobody would be told."""
    found = dict(_checked())
    assert len(found) > 40
    assert [name for name, call in found.items() if not hints_of(call)] == []

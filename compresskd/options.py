"""Options of classes and functions: judged by their annotations, refused in one dialect of messages."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, Union

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Share = Annotated[float, Gt(0), Lt(1)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_PLAIN = (bool, int, float, str, list, dict, type(None))
_LONGEST_SHOWN = 200
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list: [a, b]",
    "sequence_str": "a list: [a, b]",
    "dict_type": "a mapping: {{a: b}}",
    "greater_than_equal": ">= {ge:g}",
    "greater_than": "> {gt:g}",
    "less_than_equal": "<= {le:g}",
    "less_than": "< {lt:g}",
    "literal_error": "{expected}",
    "one_of": "{allowed}",
    "value_error": "{error}",
    "string_pattern_mismatch": "letters, digits and _ . - (it names a folder)",
    "string_too_long": "at most {max_length} characters",
    "too_short": "{min_length} or more of them",
    "made": "a node whose _target_ makes a {name}",
}
_T = TypeVar("_T", bound=Callable[..., Any])


class OptionError(ValueError):
    """An option that is not allowed.

    Attributes:
        field: its path in what it is an option of, such as `ranks.fc1`.
        got: the value. expected: what is allowed, in words.
        literal: it is the name itself that is wrong, not the value.
    """

    literal = False

    def __init__(self, field: str, got: Any, expected: str):
        super().__init__(field, got, expected)
        self.field, self.got, self.expected = field, got, expected

    @property
    def text(self) -> str:
        """What was got, and what is expected."""
        return f"got {shown(self.got)}, expected {self.expected}"

    @property
    def errors(self) -> Sequence[OptionError]:
        """The single errors that this stands for."""
        return [self]

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


class Refusal(OptionError):
    """An option that is refused in words of its own."""

    def __init__(self, field: str, text: str, *, literal: bool = False):
        super().__init__(field, None, text)
        self.literal = literal

    @property
    def text(self) -> str:
        """The words."""
        return self.expected


class OptionErrors(OptionError):
    """Several at once."""

    def __init__(self, errors: Sequence[OptionError]):
        ValueError.__init__(self, errors)

    @property
    def errors(self) -> Sequence[OptionError]:
        """The single errors that this stands for."""
        return self.args[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def one_of(*allowed: Any) -> AfterValidator:
    """The mark of an annotation of few values: `Annotated[str, one_of("a", "b")]`."""

    def check(value: Any) -> Any:
        if value not in allowed:
            raise PydanticCustomError("one_of", "{allowed}", {"allowed": ", ".join(map(str, allowed))})
        return value

    return AfterValidator(check)


def raise_all(errors: Iterable[OptionError]) -> None:
    """Raise what there is: one error as it is, several together."""
    found = list(errors)
    if found:
        raise found[0] if len(found) == 1 else OptionErrors(found)


@contextmanager
def within(holder: str) -> Iterator[None]:
    """Errors of options inside are raised as those of options of `holder`."""
    try:
        yield
    except OptionError as error:
        for each in error.errors:
            each.field = joined(holder, each.field)
        raise


def joined(holder: str, field: str) -> str:
    """The path of `field` below `holder`."""
    return f"{holder}{'' if not holder or not field or field.startswith('[') else '.'}{field}"


def shown(value: Any) -> str:
    """A value as a configuration has it, cut where it is long."""
    plain = {None: "null", True: "true", False: "false"}
    known = isinstance(value, bool) or value is None
    text = plain[value] if known else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:40]}... ({len(text)} characters)"


def checked(make: _T) -> _T:
    """Let a dataclass, or a function, judge the values that it is called with by their annotations.

    Raises (when called):
        OptionError: for values of another type, or out of their range.
    """
    call: Any = make.__init__ if inspect.isclass(make) else make

    @functools.wraps(call)
    def checking(*args: Any, **options: Any) -> Any:
        bound = _signature(call).bind(*args, **options)
        others = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        unpacked = {name: value for other in others for name, value in bound.arguments.get(other, {}).items()}
        raise_all(faults(make, {**bound.arguments, **unpacked}))
        return call(*args, **options)

    if not inspect.isclass(make):
        return typing.cast(_T, checking)
    make.__init__ = checking  # pyright: ignore[reportAttributeAccessIssue]
    return typing.cast(_T, make)


def faults(make: Callable[..., Any], values: Mapping[str, Any]) -> list[OptionError]:
    """What is wrong with each of the values that `make` is to be called with; names that it lacks are left out."""
    found = []
    hints = hints_of(make)
    for name, value in values.items():
        adapter = _adapter(make, name) if name in hints else None
        try:
            if adapter is not None:
                adapter.validate_python(value)
        except ValidationError as error:
            told = _told(name, value, error)
            for each in told:
                if each.field == name and type(None) in typing.get_args(hints[name]):
                    each.expected += " or null"
            found += told
    return found


def misnamed(
    function: Callable[..., Any], given: Mapping[str, Any], target: str, *, given_all: bool = True
) -> Iterator[Refusal]:
    """What is wrong with the names of the options that a class or function is given.

    Args:
        target: what it is called, for messages.
        given_all: nothing else will be given.
    """
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in C, says nothing of itself
        return
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {n: p.default is inspect.Parameter.empty for n, p in known.items() if p.kind not in various}
    unpacked = {name: False for name in hints_of(function) if name not in known and name != "return"}
    takes_any = not unpacked and any(p.kind == inspect.Parameter.VAR_KEYWORD for p in known.values())
    names = needed | unpacked
    for name in given:
        if name not in names and not takes_any:
            yield Refusal(name, f"unknown option of {target}{nearest(name, names)}", literal=True)
    for name, is_needed in names.items():
        if given_all and ((is_needed and name not in given) or given.get(name) == "???"):
            yield Refusal(name, f"is missing; {target} needs it", literal=True)


@functools.cache
def hints_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each option, those of `**options: Unpack[SomeTypedDict]` among them."""
    try:
        own = make.__init__ if inspect.isclass(make) and not dataclasses.is_dataclass(make) else make
        hints = typing.get_type_hints(own, include_extras=True)
        unpacked = [typing.get_args(h)[0] for h in hints.values() if typing.get_origin(h) is typing.Unpack]
        return hints | {
            k: v for each in unpacked for k, v in typing.get_type_hints(each, include_extras=True).items()
        }
    except Exception:  # an annotation of a user's own that does not resolve is no fault of the values
        return {}


_signature = functools.cache(inspect.signature)


@functools.cache
def _adapter(make: Callable[..., Any], name: str) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(_judged(hints_of(make)[name]), config=_STRICT)
    except PydanticSchemaGenerationError:
        return None


def _judged(hint: Any) -> Any:
    """The hint as pydantic is to judge it: lists serve for every sequence, objects are made by a `_target_`."""
    kind, inner = typing.get_origin(hint) or hint, tuple(map(_judged, typing.get_args(hint)))
    union = Union[tuple(i for i in inner if i is not ...) or (Any,)]  # noqa: UP007 - of a computed number of members
    judged: Any = Any
    if hint in (int, float, str, bool, None, type(None), ...):
        judged = hint
    elif kind is Annotated:
        judged = Annotated[(inner[0], *hint.__metadata__)]
    elif kind is typing.Literal:
        judged = Annotated[hint, BeforeValidator(_no_bool)]
    elif kind in (Union, types.UnionType):
        judged = union
    elif kind in (list, tuple, collections.abc.Sequence):
        judged = Sequence[union]
    elif kind in (dict, collections.abc.Mapping):
        keys, values = inner or (Any, Any)
        judged = Mapping[keys, values]
    elif inspect.isclass(kind) and kind not in (Any, object, collections.abc.Callable):
        judged = Annotated[Any, AfterValidator(functools.partial(_made, kind))]
    return judged


def _no_bool(value: Any) -> Any:
    return None if isinstance(value, bool) else value  # True is 1 in Python, not in a configuration


def _made(kind: type, value: Any) -> Any:
    is_protocol = getattr(kind, "_is_protocol", False)
    if (isinstance(value, _PLAIN) and not isinstance(value, kind if not is_protocol else ())) or not (
        is_protocol or isinstance(value, kind)
    ):
        raise PydanticCustomError("made", "{name}", {"name": kind.__name__})
    return value


def _told(name: str, value: Any, error: ValidationError) -> list[OptionError]:
    """An error for each place in a value where something is wrong, whichever member of a union says so."""
    places: dict[str, tuple[Any, list[str]]] = {}
    for each in error.errors():
        field, got = _place(name, value, each["loc"])
        expected = _EXPECTED.get("list_type" if _is_sequence(each) else each["type"], each["msg"])
        words = expected.format(**each.get("ctx", {}))
        places.setdefault(field, (got, []))[1].append(words)
    deepest = [f for f in places if not any(o.startswith((f"{f}.", f"{f}[")) for o in places)]
    return [OptionError(f, places[f][0], " or ".join(dict.fromkeys(places[f][1]))) for f in deepest]


def _is_sequence(error: Any) -> bool:
    return error["type"] == "is_instance_of" and error["ctx"]["class"] == "Sequence"


def _place(field: str, value: Any, loc: Sequence[str | int]) -> tuple[str, Any]:
    """Where pydantic's path leads, without the members of unions that it names on the way."""
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            field, value = f"{field}.{part}", value[part]
        elif isinstance(value, Sequence) and isinstance(part, int) and not isinstance(value, str):
            field, value = f"{field}[{part}]", value[part]
        elif part == "[key]":  # of a mapping, which was followed to the value
            value = field.rpartition(".")[2]
    return field, value


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean NAME?' where one is close, else the expected ones where they are few, else nothing."""
    names = list(names)
    return did_you_mean(name, names) or (f"; expected {', '.join(names)}" if 0 < len(names) <= 40 else "")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean NAME?' where one is close, else nothing."""
    near = close_match(name, names)
    return f"; did you mean {near}?" if near else ""


def close_match(name: str, names: Iterable[str]) -> str | None:
    """Return the name that `name` is most likely a misspelling of, whatever the case, or None."""
    by_lower = {str(n).lower(): str(n) for n in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None

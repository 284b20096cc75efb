"""Make what plain nodes describe: mappings with a `_target_` are called, innermost first; all faults are collected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from compresskd.options import OptionError, Refusal, faults, joined, misnamed

Find = Callable[[str, str], Callable[..., Any]]
Place = Callable[[str], str]
# What stands for a node that is not made: something in it is wrong, or it was only judged.
UNMADE: Any = object()
_SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


class Maker:
    """Makes objects from nodes, so that the user hears of all faults at once; of each option it is judged first.

    Attributes:
        errors: what is wrong, each with its dotted key as `field`.
        cause: the first exception.

    Args:
        find: (dotted path, key) -> the class or function; ValueError where there is none, or none that may stand there.
    """

    def __init__(self, find: Find):
        self._find = find
        self.errors: list[OptionError] = []
        self.cause: BaseException | None = None

    def refuse(self, key: str, text: str, *, literal: bool = False) -> None:
        """Note that something is wrong."""
        self.errors.append(Refusal(key, text, literal=literal))

    def make(self, node: Any, key: str, *, call: bool = True) -> Any:
        """The value with every `_target_` in it called; UNMADE where that cannot be.

        Args:
            node: nested plain values; `_args_` and `_partial_` mean what they do in Hydra.
            key: its dotted key.
            call: False only judges.
        """
        if isinstance(node, list):
            made: Any = [self.make(value, f"{key}[{i}]", call=call) for i, value in enumerate(node)]
            return UNMADE if _is_open(made) else made
        if not isinstance(node, Mapping):
            return node
        made = {name: self.make(value, joined(key, str(name)), call=call) for name, value in node.items()}
        if "_target_" not in node:
            return UNMADE if _is_open(made.values()) else made
        options = {name: value for name, value in made.items() if name not in _SPECIAL}
        args, partial = made.get("_args_") or [], bool(node.get("_partial_"))
        target, place = str(node["_target_"]), functools.partial(joined, key)
        try:
            function = self._find(target, key)
        except ValueError as error:
            missing = "is missing; write the dotted path of a class or function"
            self.refuse(place("_target_"), missing if target == "???" else str(error))
            return UNMADE
        sound = self.judge(function, options, place, target, given_all=not (args or partial))
        if not sound or not call or _is_open([*args, *options.values()]):
            return UNMADE
        made = functools.partial(function, *args, **options)
        return made if partial else self.attempt(place, made)

    def judge(
        self, function: Callable[..., Any], given: Mapping[str, Any], place: Place, target: str, *,
        given_all: bool = True,
    ) -> bool:  # fmt: skip
        """Whether a function can be called with these options, as far as its signature tells; else there are errors.

        Args:
            place: from the name of an option, or the path of what is in it, to its key.
            target, given_all: see `compresskd.options.misnamed`.
        """
        values = {name: value for name, value in given.items() if value is not UNMADE and value != "???"}
        found = [*misnamed(function, given, target, given_all=given_all), *faults(function, values)]
        self._note(found, place)
        return not found

    def attempt(self, place: Place, make: Callable[[], Any]) -> Any:
        """Make a part; a failure becomes an error of the option that it names, or of the whole, and UNMADE."""
        try:
            return make()
        except OptionError as error:
            self.cause = self.cause or error
            self._note(error.errors, place)
        except Exception as error:  # a part may be the user's own code, which raises what it likes
            self.cause = self.cause or error
            said = str(error) if isinstance(error, ValueError | TypeError | OSError | RuntimeError) else ""
            self.refuse(place(""), " ".join((said or f"{type(error).__name__}: {error}").split()))
        return UNMADE

    def _note(self, errors: Iterable[OptionError], place: Place) -> None:
        for error in errors:
            error.field = place(error.field)
            self.errors.append(error)


def _is_open(made: Iterable[Any]) -> bool:
    """Whether something in a container is not made."""
    return any(value is UNMADE for value in made)

"""Make what plain nodes describe: every option is judged first, and all that is wrong is collected, with its key."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compresskd import options as judge
from compresskd.config.allowed import parameters, resolve_allowed
from compresskd.config.faults import Fault
from compresskd.options import OptionError, joined, nearest

Place = Callable[[str], str]
# What stands for a node of which something is wrong, and for one that was judged and not made.
FAILED: Any = object()
OPEN: Any = object()
_SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


class Builder:
    """Makes objects from nodes, so that the user hears of all faults at once.

    Args:
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.
    """

    def __init__(self, trust: Sequence[str] | None = None):
        self._trust = trust
        self.faults: list[Fault] = []
        self.cause: BaseException | None = None

    def fault(self, key: str, text: str, *, literal: bool = False) -> None:
        """Note that something is wrong."""
        self.faults.append(Fault(key, text, literal=literal))

    def make(self, node: Any, key: str, *, call: bool = True) -> Any:  # noqa: PLR0911
        """The value with every `_target_` in it called, innermost first; FAILED where that cannot be.

        Args:
            node: nested plain values.
            key: its dotted key.
            call: False only judges, and gives OPEN.
        """
        if isinstance(node, list):
            return _whole([self.make(v, f"{key}[{i}]", call=call) for i, v in enumerate(node)])
        if not isinstance(node, Mapping):
            return node
        made = {name: self.make(value, f"{key}.{name}", call=call) for name, value in node.items()}
        if "_target_" not in node:
            return _whole(made)
        function = self._function(node["_target_"], key)
        if function is None:
            return FAILED
        options = {name: value for name, value in made.items() if name not in _SPECIAL}
        args, partial = made.get("_args_") or [], bool(node.get("_partial_"))
        place = functools.partial(joined, key)
        if not self.judge(function, options, place, node["_target_"], given_all=not (args or partial)):
            return FAILED
        if not call or OPEN in map(_open, options.values()):
            return OPEN
        if partial:
            return functools.partial(function, *args, **options)
        return self.attempt(place, lambda: function(*args, **options))

    def judge(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        place: Place,
        target: str,
        *,
        given_all: bool = True,
    ) -> bool:
        """Whether a function can be called with these options, as far as its signature tells; else there are faults.

        Args:
            place: from the name of an option, or the path of what is in it, to its key.
            target: what the function is called, for messages.
            given_all: nothing else will be given.
        """
        needed, takes_any = parameters(function)
        before = len(self.faults)
        for name in options:
            if name not in needed and not takes_any:
                self.fault(place(name), f"unknown option of {target}{nearest(name, needed)}", literal=True)
        for name, is_needed in needed.items():
            if given_all and ((is_needed and name not in options) or options.get(name) == "???"):
                self.fault(place(name), f"is missing; {target} needs it", literal=True)
        values = {n: v for n, v in options.items() if v is not FAILED and v is not OPEN and v != "???"}
        for error in judge.faults(function, values):
            self.fault(place(error.field), error.text)
        return len(self.faults) == before and not any(value is FAILED for value in options.values())

    def attempt(self, place: Place, make: Callable[[], Any]) -> Any:
        """Make a part; a failure becomes a fault of the option that it names, or of the whole."""
        try:
            return make()
        except OptionError as error:
            self.cause = self.cause or error
            for each in error.errors:
                self.fault(place(each.field), each.text)
        except Exception as error:  # a part may be the user's own code, which raises what it likes
            self.cause = self.cause or error
            said = str(error) if isinstance(error, ValueError | TypeError | OSError | RuntimeError) else ""
            self.fault(place(""), " ".join((said or f"{type(error).__name__}: {error}").split()))
        return FAILED

    def _function(self, target: Any, key: str) -> Callable[..., Any] | None:
        if target == "???" or not isinstance(target, str):
            self.fault(f"{key}._target_", "is missing; write the dotted path of a class or function")
            return None
        try:
            return resolve_allowed(target, key, trust=self._trust)
        except ValueError as error:
            self.fault(f"{key}._target_", str(error))
            return None


def _whole(made: Any) -> Any:
    """A container, unless something in it failed or is open."""
    inside = made.values() if isinstance(made, dict) else made
    return FAILED if any(v is FAILED for v in inside) else OPEN if any(v is OPEN for v in inside) else made


def _open(value: Any) -> Any:
    return OPEN if value is OPEN else None

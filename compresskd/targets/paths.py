"""Dotted paths: from the name of a class or function to the thing itself, or to words that help.

A path that comes out of a directory names what its writer wishes. `check_trusted` comes first there: nothing of a
package that the user has not named is imported.
"""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from typing import Any

from compresskd.options import did_you_mean
from compresskd.targets.stored_names import current

_added: set[str] = set()  # places that hold code of the user's own, which were nowhere on the path
_aside: list[str] = []  # those that are off the path for now
_SHIPPED = ("compresskd.", "torch.optim.")  # every run names an optimizer of torch


class Untrusted(ValueError):
    """Something asks to run code that the package does not ship, and nobody has said that it may."""


class Granted(tuple[str, ...]):
    """Packages besides compresskd whose code may be run; `reason` says why there are not more, for messages."""

    reason: str

    def __new__(cls, packages: Sequence[str] = (), reason: str = "") -> "Granted":
        """As a tuple."""
        granted = super().__new__(cls, packages)
        granted.reason = reason
        return granted


def check_trusted(path: str, *, trust: Sequence[str] = ()) -> None:
    """Raise Untrusted where a dotted path lies outside of what is shipped and of the packages in `trust`."""
    package, *names = str(path).split(".")
    if not is_shipped(path) and package not in trust:
        because = getattr(trust, "reason", "")
        raise Untrusted(
            f"'{path}' is not part of compresskd, and runs only where you say so: write --trust {package}, in Python "
            f"trust=('{package}',)" + (f" ({because})" if because else "")
        )
    if any(name.startswith("__") for name in names):  # importing compresskd.__main__ would run the program
        raise Untrusted(f"'{path}' is no path of a class or function")


def is_shipped(path: str) -> bool:
    """Whether a dotted path names what every installation has: parts of compresskd, and the optimizers of torch."""
    return str(path).startswith(_SHIPPED)


def search_here_last() -> None:
    """Move the working directory, where something has put it on the Python path, behind everything else.

    A file of that folder must not stand in for a module of a library; child processes do not put it first either.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    with suppress(FileNotFoundError):  # the working directory may be gone
        here = os.getcwd()
        others = [place for place in sys.path if place not in ("", ".", here)]
        sys.path[:] = others if len(others) == len(sys.path) else [*others, here]


@contextmanager
def without_here() -> Iterator[None]:
    """Keep the working directory off the Python path where `resolve` has put it there, for the user's own code.

    Worker processes take the path over, and Hydra looks for plugins on all of it, in each of them before each job.
    """
    _set_aside()
    try:
        yield
    finally:
        _put_back()


@contextmanager
def with_here() -> Iterator[None]:
    """Have the working directory on the path as long as a job runs, in this process or in a worker."""
    _put_back()
    try:
        yield
    finally:
        _set_aside()


def _set_aside() -> None:
    _aside.extend(place for place in sys.path if place in _added)
    sys.path[:] = [place for place in sys.path if place not in _added]


def _put_back() -> None:
    sys.path.extend(_aside)
    _aside.clear()


def resolve(target: str) -> Callable[..., Any]:
    """Return the class or function at a dotted path.

    The working directory is searched after all that is on the Python path, and only for the first part of a dotted
    path that is nowhere else. Where that is found there it stays the last place of the Python path, for what its
    code imports later.

    Raises:
        ValueError: no such path (with the nearest valid name), a module on it that fails to import (with the
            failure), or something there that cannot be called.
    """
    target = current(target) if isinstance(target, str) else target
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"expected a dotted path such as compresskd.models.mlp.MLP, got {target!r}")
    found, depth = _longest_import(parts)
    for position in range(depth, len(parts)):
        name = parts[position]
        if not hasattr(found, name):
            holder = ".".join(parts[:position])
            raise ValueError(f"{target}: {holder} has no {name!r}{did_you_mean(name, _names_in(found))}")
        found = getattr(found, name)
    if not callable(found):
        hint = did_you_mean(parts[-1], _names_in(found)) if inspect.ismodule(found) else ""
        raise ValueError(f"{target}: expected a class or function, found {type(found).__name__}{hint}")
    return found


def _longest_import(parts: Sequence[str]) -> tuple[Any, int]:
    """Import the modules of a dotted path; say how many parts these were: the rest are attributes."""
    found, target = None, ".".join(parts)
    _search_here_last(parts[0])
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # the module is there, but something that it imports is not
                raise ValueError(f"{target}: importing {name} failed: {error}") from error
            if found is None:
                hint = did_you_mean(name, [module.name for module in pkgutil.iter_modules()])
                raise ValueError(f"{target}: no module named {name!r} on the Python path{hint}") from None
            return found, count - 1
        except Exception as error:  # whatever the code of a user's module raises
            raise ValueError(f"{target}: importing {name} failed: {type(error).__name__}: {error}") from error
    return found, len(parts)


def _search_here_last(package: str) -> None:
    """Append the working directory to the Python path where it holds a package that is nowhere else."""
    with suppress(FileNotFoundError):  # the working directory may be gone
        here = os.getcwd()
        known = package in sys.modules or importlib.util.find_spec(package) is not None
        if here not in sys.path and not known:
            importlib.invalidate_caches()
            if PathFinder.find_spec(package, [here]) is not None:
                sys.path.append(here)
                _added.add(here)


def _names_in(found: Any) -> list[str]:
    """Public attributes, and for a package also the modules in it that nobody has imported yet."""
    names = [name for name in dir(found) if not name.startswith("_")]
    return names + [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]

"""Dotted paths: from the name of a class or function to the thing itself, or to words that help."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any


def resolve(target: str) -> Callable[..., Any]:
    """Return the class or function at a dotted path.

    Raises:
        ValueError: no such path (with the nearest valid name), a module on it that fails to import (with the
            failure), or something there that cannot be called.
    """
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"expected a dotted path such as compresskd.models.mlp.MLP, got {target!r}")
    found, depth = _longest_import(parts)
    for position in range(depth, len(parts)):
        name = parts[position]
        if not hasattr(found, name):
            holder = ".".join(parts[:position])
            raise ValueError(f"{target}: {holder} has no {name!r}{nearest(name, _names_in(found))}")
        found = getattr(found, name)
    if not callable(found):
        hint = nearest(parts[-1], _names_in(found)) if inspect.ismodule(found) else ""
        raise ValueError(f"{target}: expected a class or function, found {type(found).__name__}{hint}")
    return found


def nearest(name: str, names: Sequence[str]) -> str:
    """Return `; did you mean 'X'?` for the most similar of some names, whatever the case, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _longest_import(parts: Sequence[str]) -> tuple[Any, int]:
    """Import the modules of a dotted path; say how many parts these were: the rest are attributes."""
    found, target = None, ".".join(parts)
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # the module is there, but something that it imports is not
                raise ValueError(f"{target}: importing {name} failed: {error}") from error
            if found is None:
                hint = nearest(name, [module.name for module in pkgutil.iter_modules()])
                raise ValueError(f"{target}: no module named {name!r} on the Python path{hint}") from None
            return found, count - 1
        except Exception as error:  # whatever the code of a user's module raises
            raise ValueError(f"{target}: importing {name} failed: {type(error).__name__}: {error}") from error
    return found, len(parts)


def _names_in(found: Any) -> list[str]:
    """Public attributes, and for a package also the modules in it that nobody has imported yet."""
    names = [name for name in dir(found) if not name.startswith("_")]
    return names + [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]

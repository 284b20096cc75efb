"""What a `_target_` may name: each place takes one kind of class or function, and nothing else that can be called.

Code of the user's own is judged by what a class derives from, or by what a function says that it returns; where
neither tells, what it made is judged by whoever called it. Functions of Python itself and of the libraries that
compresskd builds on are never anybody's own: of them only what a kind lists is taken.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskd.targets.paths import resolve

_LIBRARIES = frozenset(
    {
        "PIL", "compresskd", "constriction", "datasets", "filelock", "huggingface_hub", "hydra", "msgpack", "numpy",
        "omegaconf", "rich", "safetensors", "sklearn", "tensorly", "timm", "tokenizers", "torch", "transformers",
    }
)  # fmt: skip
# Functions that make a model of another library, by what a model file may say.
ADAPTERS = (
    "compresskd.models.huggingface.from_config",
    "compresskd.models.timm.timm",
    "compresskd.models.from_teacher.shortened",
)
# What a configuration alone may name: the first reads a folder or the hub, the second needs the teacher.
_DESCRIPTIONS = ("compresskd.models.huggingface.huggingface", "compresskd.models.from_teacher.FromTeacher")
_INITIALISERS_AND_ACTIVATIONS = ("torch.nn.init", "torch.nn.functional")


@dataclass(frozen=True)
class Kind:
    """What may stand at one place.

    Attributes:
        words: that, for messages: 'expected {words}'.
        base: what is made is an instance of this; None where there is no class to derive from.
        shipped: whether a class or function of compresskd, of a library or of Python is of the kind.
    """

    words: str
    base: type | None
    shipped: Callable[[Any], bool]


def resolve_kind(path: str, kind: Kind) -> Callable[..., Any]:
    """Return the class or function at a dotted path where it is of a kind.

    Raises:
        ValueError: it is not, or errors as `compresskd.targets.paths.resolve`'s.
    """
    found = resolve(path)
    inner = _inner(found)
    if (inspect.isclass(inner) or inspect.isfunction(inner)) and _fits(inner, kind):
        return found
    raise ValueError(f"{path}: expected {kind.words}, got {_described(inner)}")


def _fits(found: Any, kind: Kind) -> bool:
    if _is_own(found):
        return kind.base is None or _makes(found, kind.base)
    return kind.shipped(found)


def is_class_of(base: type, *homes: str) -> Callable[[Any], bool]:
    """Whether something is a subclass of `base` that is defined in, or below, one of the modules in `homes`."""
    return lambda found: inspect.isclass(found) and issubclass(found, base) and _is_below(found, homes)


def _is_below(found: Any, homes: tuple[str, ...]) -> bool:
    return any(f"{_home(found)}.".startswith(f"{home}.") for home in homes)


_is_module = is_class_of(nn.Module, "compresskd", "torch.nn")


def is_adapter(found: Any) -> bool:
    """Whether it is one of the functions that make a model of another library."""
    return _path_of(found) in ADAPTERS


def _path_of(found: Any) -> str:
    return f"{_home(found)}.{getattr(found, '__qualname__', '')}"


MODULE = Kind(
    "a subclass of torch.nn.Module, or a function of your own that returns a module",
    nn.Module,
    lambda found: _is_module(found) or is_adapter(found) or _path_of(found) in _DESCRIPTIONS,
)
PART = Kind(
    "part of a model: a subclass of torch.nn.Module, a function of torch.nn.functional or torch.nn.init, or a class or "
    "function of your own",
    None,
    lambda found: (
        _is_module(found)
        or is_adapter(found)
        or (inspect.isfunction(found) and _home(found) in _INITIALISERS_AND_ACTIVATIONS)
    ),
)


def _inner(found: Any) -> Any:
    """What is called in the end: under `functools.partial`, under a decorator, behind a class method."""
    while True:
        if isinstance(found, functools.partial):
            found = found.func
        elif inspect.ismethod(found):
            found = found.__func__
        elif not inspect.isclass(found) and hasattr(found, "__wrapped__"):
            found = found.__wrapped__
        else:
            return found


def _is_own(found: Any) -> bool:
    package = _home(found).partition(".")[0]
    return package not in sys.stdlib_module_names and package not in _LIBRARIES


def _home(found: Any) -> str:
    """The module that something says it is defined in."""
    return str(getattr(found, "__module__", ""))


def _makes(found: Any, base: type) -> bool:
    """Whether a call makes an instance of `base`, as far as can be told without one."""
    if inspect.isclass(found):
        return issubclass(found, base)
    try:
        made = typing.get_type_hints(found).get("return")
    except Exception:  # an annotation that does not resolve says nothing
        return True
    return not inspect.isclass(made) or issubclass(made, base)


def _described(found: Any) -> str:
    what = "class" if inspect.isclass(found) else type(found).__name__.replace("_", " ").strip()
    return f"the {what} {_home(found) or '?'}.{getattr(found, '__qualname__', '?')}"

"""Replace modules of a network by name, and record the new structure so that it can be made again.

A compressed module describes itself with `structure()` (plain JSON values) and is made again, with parameters
of the right shapes and no particular values, by the class method `from_structure`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from compresskd.models.kinds import MODULE, Kind, resolve_kind
from compresskd.models.target import check_trusted


@runtime_checkable
class Structured(Protocol):
    """A module that can say how to build itself again."""

    def structure(self) -> dict[str, Any]:
        """Everything but the values of the parameters, as plain JSON values."""
        ...


def replace(
    model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]
) -> dict[str, nn.Module]:
    """Ask `replacement(name, module)` for every submodule, outermost first, and put in what it returns.

    None leaves the module where it is and goes on inside it; a replaced module is not searched further. The
    model itself is never asked for. Returns the new modules by fully qualified name; `model` is changed in place.
    """
    replaced: dict[str, nn.Module] = {}
    for name, module in _outermost_first(model, replaced):
        new = replacement(name, module)
        if new is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
            replaced[name] = new
    return replaced


def _outermost_first(model: nn.Module, skip: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, module in list(model.named_modules()):
        inside = any(name.startswith(f"{outer}.") for outer in skip)
        if name and not inside:
            yield name, module


def matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a module's name fits any `include` pattern and no `exclude` pattern (shell-style, `layer1.*`)."""
    return any(fnmatch.fnmatchcase(name, p) for p in include) and not any(
        fnmatch.fnmatchcase(name, p) for p in exclude
    )


def structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The structure of every structured submodule by fully qualified name; empty for an ordinary network."""
    return {
        name: {**module.structure(), "class": _class_path(module)}
        for name, module in model.named_modules()
        if name and isinstance(module, Structured)
    }


def _class_path(module: Any) -> str:
    cls = type_before_parametrizations(module)  # a rounded bias makes the class a dynamic one
    return f"{cls.__module__}.{cls.__qualname__}"


def apply_structure(
    model: nn.Module, recorded: Mapping[str, Mapping[str, Any]], *, trust: Sequence[str] = ()
) -> None:
    """Put modules of the recorded structure into a freshly built architecture, in place.

    Args:
        model: the architecture as its constructor makes it.
        recorded: what `structure` returned.
        trust: packages besides compresskd whose classes may be built.

    Raises:
        ValueError: a class outside the trusted packages, or a name that the architecture does not have.
    """
    for name, values in recorded.items():
        cls = resolve(values["class"], trust=trust)
        make = getattr(cls, "from_structure", None)
        if make is None:
            raise ValueError(
                f"'{values['class']}' cannot be built from a structure: it has no from_structure"
            )
        parent, _, child = name.rpartition(".")
        try:
            holder = model.get_submodule(parent)
            old = getattr(holder, child)
        except AttributeError:
            raise ValueError(
                f"the architecture has no module '{name}' to give its recorded structure"
            ) from None
        new = make(values)
        setattr(holder, child, new.train(old.training))


def resolve(path: str, *, trust: Sequence[str] = (), kind: Kind = MODULE) -> Callable[..., Any]:
    """The class or function at a dotted path that a file names and that is to be called.

    Of compresskd only subclasses of `nn.Module` are, of a package in `trust` what is of the `kind` and defined in
    it. What a trusted file merely imports (`compresskd.environment.subprocess.run`) is refused.

    Raises:
        ValueError: the path lies outside, or names nothing of the kind. Nothing outside is ever imported.
    """
    check_trusted(path, trust=trust)
    found = resolve_kind(path, kind)
    home = getattr(found, "__module__", None) or ""
    package = home.partition(".")[0]
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    if package in trust or (package == "compresskd" and is_module):
        return found
    raise ValueError(f"'{path}' is no torch.nn.Module that compresskd defines (it comes from '{home}')")

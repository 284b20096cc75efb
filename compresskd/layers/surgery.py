"""Replace modules of a network by name, and record the new structure so that it can be made again.

A compressed module describes itself with `structure()` (plain JSON values) and is made again, with parameters
of the right shapes and no particular values, by the class method `from_structure`.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.utils import parametrize

from compresskd import layers
from compresskd.targets.kinds import MODULE, Kind, is_adapter, resolve_kind
from compresskd.targets.paths import check_trusted
from compresskd.targets.stored_names import stored

_WEIGHTS_OF = "weights_of"  # in a structure: the module whose factors this one holds too


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
    model itself is never asked for, and a module under several names once: the new one takes all its places.
    Returns the new modules by fully qualified name; `model` is changed in place.
    """
    replaced: dict[str, nn.Module] = {}
    for name, module in _outermost_first(model, replaced):
        new = replacement(name, module)
        if new is not None:
            put(model, module, new)
            replaced[name] = new
    return replaced


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is inside `model`."""
    for parent in list(model.modules()):
        for child in [name for name, module in parent._modules.items() if module is old]:
            setattr(parent, child, new)


@torch.no_grad()
def adopt(new: nn.Module, old: nn.Module) -> nn.Module:
    """`new` made to stand where `old` did: in its mode, on its device, in its type, as trainable, with its very bias.

    The bias takes the values of `new`'s; that it may be another layer's too stays so.
    """
    weights = layers.weights_of(old) or list(old.parameters())
    if weights:
        without_values = any(parameter.is_meta for parameter in new.parameters())
        new.to(device=None if without_values else weights[0].device, dtype=weights[0].dtype)
        new.requires_grad_(any(weight.requires_grad for weight in weights))
    bias, own = old._parameters.get("bias"), new._parameters.get("bias")
    if bias is not None and own is not None and bias.shape == own.shape:
        if not own.is_meta:
            bias.data = own.data.to(bias)  # not written into: its memory may be lent
        new.register_parameter("bias", bias)
    return new.train(old.training)


def lent(model: nn.Module) -> nn.Module:
    """A copy whose parameters are its own but lie in the memory of the model's, until `settle`; buffers are copied.

    What replaces layers of the copy changes nothing of the model, and never has both in memory.
    """
    values = {id(p): type(p)(p.data, p.requires_grad) for p in model.parameters()}  # pyright: ignore
    return copy.deepcopy(model, values)


def settle(borrower: nn.Module, lender: nn.Module) -> nn.Module:
    """Give the parameters of a `lent` copy that still lie in the memory of the model memory of their own, in place."""
    theirs = {parameter.untyped_storage().data_ptr() for parameter in lender.parameters()}
    for parameter in borrower.parameters():
        if parameter.untyped_storage().data_ptr() in theirs:
            parameter.data = parameter.data.clone()
    return borrower


def share_weights(new: nn.Module, holder: nn.Module) -> None:
    """Let `new` hold the very factors of `holder`. Raises ValueError where they are of other shapes."""
    ours, theirs = ([list(p.shape) for p in layers.weights_of(module)] for module in (new, holder))
    if ours != theirs or not ours:
        raise ValueError(
            f"tied factors: expected the shapes {ours}, those that are to be shared are {theirs}"
        )
    for key in layers.WEIGHTS:
        if isinstance(getattr(holder, key, None), nn.Module | nn.Parameter):
            setattr(new, key, getattr(holder, key))


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
    """The structure of every structured submodule by its first name; empty for an ordinary network.

    Where a module holds the factors of one before it, its structure names that one under `weights_of`.
    """
    found: dict[str, dict[str, Any]] = {}
    holders: dict[int, str] = {}
    for name, module in model.named_modules():
        if name and isinstance(module, Structured):
            cls: Any = parametrize.type_before_parametrizations(module)  # pyright: ignore[reportArgumentType]
            found[name] = {**module.structure(), "class": stored(f"{cls.__module__}.{cls.__qualname__}")}
            factors = next((getattr(module, key) for key in layers.WEIGHTS if hasattr(module, key)), module)
            holder = holders.setdefault(id(factors), name)
            if holder != name:
                found[name][_WEIGHTS_OF] = holder
    return found


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
        cls = resolve_trusted(values["class"], trust=trust)
        make = getattr(cls, "from_structure", None)
        if make is None:
            raise ValueError(
                f"'{values['class']}' cannot be built from a structure: it has no from_structure"
            )
        try:
            old = model.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"the architecture has no module '{name}' to give its recorded structure"
            ) from None
        new = adopt(make(values), old)
        if _WEIGHTS_OF in values:
            share_weights(new, model.get_submodule(values[_WEIGHTS_OF]))
        put(model, old, new)


def resolve_trusted(path: str, *, trust: Sequence[str] = (), kind: Kind = MODULE) -> Callable[..., Any]:
    """The class or function at a dotted path that a file names and that is to be called.

    Of compresskd only subclasses of `nn.Module` are, and adapters to other libraries; of a package in `trust` what is
    of the `kind` and defined in it. What a trusted file merely imports (`compresskd.engine.environment.subprocess.run`)
    is refused.

    Raises:
        ValueError: the path lies outside, or names nothing of the kind. Nothing outside is ever imported.
    """
    check_trusted(path, trust=trust)
    found = resolve_kind(path, kind)
    home = getattr(found, "__module__", None) or ""
    package = home.partition(".")[0]
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    if package in trust or (package == "compresskd" and (is_module or is_adapter(inspect.unwrap(found)))):
        return found
    raise ValueError(f"'{path}' is no torch.nn.Module that compresskd defines (it comes from '{home}')")

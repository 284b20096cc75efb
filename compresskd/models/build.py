"""From a dotted path and plain values to a module that knows how to be built again."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compresskd.options import did_you_mean
from compresskd.targets.kinds import MODULE, PART, resolve_kind
from compresskd.targets.paths import resolve

_SAYS_ITSELF = (
    "compresskd.models.huggingface.huggingface"  # how its module is rebuilt, without the folder it is of
)
_NOT_PASSED = (
    "_target_",
    "_convert_",
    "_recursive_",
)  # the last two are Hydra's; values are plain and nested here


def build(target: str, kwargs: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Construct `target(**kwargs)` from a seed and attach what rebuilds it as `module.spec`.

    The initial parameters are a function of the arguments alone, and the global random generators are left as
    they were. A mapping inside `kwargs` that has a `_target_` is constructed first (`_args_` and `_partial_`
    mean what they do in Hydra), so that parts of a model can be configured too.

    Args:
        target: dotted path of a class, or of a function that returns a module.
        kwargs: plain values (numbers, strings, booleans, None, lists, mappings by string).
        seed: of the initial parameters.

    Raises:
        ValueError: the path leads nowhere or to something else than a module, a part of a model or code of the
            user's own, an option is unknown or missing, a value is not plain, or what was constructed is no module.
    """
    options = _plain(kwargs, where=target)
    with _seeded(seed):
        module = _construct(
            resolve_kind(target, MODULE), target, options, lambda path: resolve_kind(path, PART)
        )
    if not isinstance(module, nn.Module):
        raise ValueError(f"{target}: expected it to construct a torch.nn.Module, got {type(module).__name__}")
    if unknown := [name for name, parameter in module.named_parameters() if is_lazy(parameter)]:
        raise ValueError(
            f"{target}: the shape of {', '.join(unknown[:3])} is not known before data come (a lazy layer); write its "
            "sizes, such as nn.Linear(64, 10) for nn.LazyLinear(10)"
        )
    if target == _SAYS_ITSELF:
        return module
    if hasattr(module, "spec"):
        raise ValueError(
            f"{target}: the module has an attribute `spec` of its own, which is the name under which the "
            "arguments that rebuild it are kept; rename it"
        )
    module.spec = {"target": target, "kwargs": options}  # pyright: ignore[reportArgumentType]
    return module


def spec_of(module: nn.Module) -> dict[str, Any]:
    """Return `{"target": ..., "kwargs": {...}}` of a module that `build` made; ValueError for any other."""
    spec = getattr(module, "spec", None)
    if not isinstance(spec, dict) or set(spec) != {"target", "kwargs"}:
        raise ValueError(
            f"{type(module).__name__} does not say how it was built: construct it by "
            "compresskd.models.build.build(target, kwargs, seed=...), or set module.spec = "
            '{"target": "package.module.Class", "kwargs": {...}}'
        )
    return spec


def construct(value: Any, find: Callable[[str], Callable[..., Any]] = resolve) -> Any:
    """A plain value with every mapping in it that has a `_target_` called, innermost first.

    `find` turns a dotted path into what is called; where paths come from elsewhere it has to judge them.
    """
    if isinstance(value, list):
        return [construct(item, find) for item in value]
    if isinstance(value, Mapping):
        if "_target_" in value:
            options = {k: v for k, v in value.items() if k not in _NOT_PASSED}
            return _construct(find(value["_target_"]), value["_target_"], options, find)
        return {name: construct(item, find) for name, item in value.items()}
    return value


def _construct(
    make: Callable[..., Any],
    target: str,
    options: Mapping[str, Any],
    find: Callable[[str], Callable[..., Any]],
) -> Any:
    options = {name: construct(value, find) for name, value in options.items()}
    args = options.pop("_args_", [])
    if options.pop("_partial_", False):
        return partial(make, *args, **options)
    _check_options(make, target, args, options)
    return make(*args, **options)


def _check_options(
    make: Callable[..., Any], target: str, args: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Say which option is unknown or missing before the constructor does so in Python's words."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = f"It takes: {', '.join(names) or 'none'}"
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for name in options:
            if name not in names:
                raise ValueError(f"{target} has no option {name!r}{did_you_mean(name, names) or '.'} {takes}")
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{target}: {error}. {takes}") from error


def _plain(value: Any, *, where: str) -> Any:
    """Copy a value, tuples as lists, so that it reads back from JSON equal; ValueError where it would not."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, where=f"{where}: {name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where=f"{where}[{position}]") for position, item in enumerate(value)]
    raise ValueError(
        f"{where}: expected a plain value (number, string, boolean, null, list, mapping by string), got "
        f"{type(value).__name__}; give a part of a model as a mapping with `_target_`, not as an object"
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Start the random generators from a seed inside; afterwards they go on as if nothing had been drawn.

    `torch.manual_seed` would seed every accelerator too, also those that are not forked here; only the
    generators that construction draws from are touched.
    """
    device = torch.get_default_device()
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield

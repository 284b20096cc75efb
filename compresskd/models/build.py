"""From a dotted path and plain values to a module that knows how to be built again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compresskd.options import OptionError, raise_all
from compresskd.targets.kinds import MODULE, PART, resolve_kind
from compresskd.targets.nodes import Maker

# how its module is rebuilt, without the folder it is of
_SAYS_ITSELF = "compresskd.models.huggingface.huggingface"


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
    maker = Maker(lambda path, key: resolve_kind(path, PART if key else MODULE))
    with _seeded(seed):
        module = maker.make({**options, "_target_": target}, "")
    try:
        raise_all(maker.errors)
    except OptionError as error:
        raise error from maker.cause
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

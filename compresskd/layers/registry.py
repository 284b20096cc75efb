"""Which layers may take another form: exactly those whose computation is known, each weight with all that uses it.

A layer is replaced only where its type is one of PyTorch's plain layers itself, or one that was registered, and
nothing was added to the instance: a subclass, a hook or another `forward` may do anything. `find` groups the layers
of a network by their weight, so that one weight is one thing, under however many names and in however many layers.

    register(ScaledEmbedding, lambda layer: plain_embedding_with_the_scale_in_its_weight(layer))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from compresskd.layers.known import Form, known, scale_of

Plain = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
NAMES = "nn.Linear, nn.Conv1d, nn.Conv2d or nn.Embedding"
WEIGHTS = ("cores", "factors", "core")  # under which factorized layers hold what stands for their weight
_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_state_dict_hooks": "state-dict hook",
    "_state_dict_pre_hooks": "state-dict pre-hook",
    "_load_state_dict_pre_hooks": "hook for loading",
    "_load_state_dict_post_hooks": "hook for loading",
}
# whose projections lie in parameters of the attention itself, which one fused operation reads
_IN_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_registered: dict[type[nn.Module], Form] = {}


@dataclass(frozen=True)
class Layer:
    """One weight, and the modules that use it.

    Attributes:
        members: those modules by the first name that each has in the network; the first one is decomposed.
        names: every name of every member.
        obstacle: why none of them may take another form; None where they may.
    """

    members: Mapping[str, nn.Module]
    names: tuple[str, ...]
    obstacle: str | None

    @property
    def name(self) -> str:
        """Of the first member."""
        return next(iter(self.members))

    @property
    def module(self) -> nn.Module:
        """The first member."""
        return next(iter(self.members.values()))


def register(
    cls: type[nn.Module],
    as_plain: Callable[[Any], Plain] | None = None,
    as_held: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Let layers of exactly this type be factorized, and quantized.

    Args:
        cls: has a parameter `weight`.
        as_plain: from a layer to the nn.Linear, nn.Conv1d, nn.Conv2d or nn.Embedding that computes the same, for any
            input, in training and evaluation. None where `cls` is a subclass of one of these whose forward is the same.
        as_held: from the weight of that layer to the one that `cls` would hold, where `as_plain` rearranges it (such as
            `torch.t`); without it a factorized model has no export with ordinary layers.

    Raises:
        ValueError: `cls` is no such subclass, and `as_plain` is not given.
    """
    if as_plain is None and not issubclass(cls, PLAIN):
        raise ValueError(f"register: got {cls.__name__}, no subclass of {NAMES}; give as_plain too")
    _registered[cls] = Form(as_plain, as_held)


def form_of(module: nn.Module) -> Form | None:
    """How a class that was registered, or is known, holds its weight; None of PyTorch's own and of strange ones."""
    cls = type_of(module)
    return _registered.get(cls) or known(cls)


def obstacle(module: nn.Module) -> str | None:
    """Why this layer may not be replaced by another form of its weight; None where it may."""
    return _obstacle_of_type(module) or _obstacle_of_hooks(module) or _obstacle_of_weight(module)


def _obstacle_of_type(module: nn.Module) -> str | None:
    cls = type_of(module)
    if cls in PLAIN or form_of(module) is not None or scale_of(module) is not None:
        return None
    if isinstance(module, nn.MultiheadAttention):
        return "one operation reads the projections of nn.MultiheadAttention, which have no factorized form"
    if cls is NonDynamicallyQuantizableLinear:  # which is made for nn.MultiheadAttention alone
        return "nn.MultiheadAttention reads its weight, which another form of the layer does not have"
    base = next((base for base in PLAIN if issubclass(cls, base)), None)
    if base is None:
        return f"{cls.__name__} has no factorized form"
    return (
        f"{cls.__name__} is a subclass of nn.{base.__name__}, whose forward may do more; where it does not, register "
        "it by compresskd.layers.registry.register"
    )


def _obstacle_of_hooks(module: nn.Module) -> str | None:
    if "forward" in vars(module):
        return "its forward was replaced on this very layer"
    for attribute, kind in _HOOKS.items():
        for called in (getattr(module, attribute, None) or {}).values():
            if kind != "hook for loading" or not parametrize.is_parametrized(
                module
            ):  # weight_norm reads older files
                return f"it carries a {kind} ({_name_of(called)}), which would be lost"
    return None


def _obstacle_of_weight(module: nn.Module) -> str | None:
    weights = weights_of(module)
    if not weights:
        return "its weight is no parameter"
    if any(is_lazy(weight) for weight in weights):
        return "the shape of its weight is not known yet"
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if any(getattr(weight, name, None) for weight in weights for name in hooks):
        return "its weight carries a hook on its gradient, which would be lost"
    added = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias", "parametrizations"}
    if added and type_of(module) in PLAIN:
        return f"{', '.join(sorted(added))} was added to it, which would be lost"
    return None


def plain(module: nn.Module) -> Plain:
    """The layer itself, or the plain one that computes the same: parametrized weights as they are in evaluation.

    Of an embedding that multiplies its rows (`scale_of`) the one that does not.
    """
    form = form_of(module)
    if form is not None and form.as_plain is not None:
        return form.as_plain(module)  # pyright: ignore[reportReturnType]
    if type(module) in PLAIN:
        return module  # pyright: ignore[reportReturnType]
    return _with_same_attributes(module)


def held_by(module: nn.Module, weight: Tensor) -> Tensor | None:
    """The parameter that the layer would hold to compute with this weight of its plain form; None if there is none."""
    return None if computes_weight(module) else holding(module)(weight)


def holding(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """`held_by` of a layer that holds its weight, as a function that does not keep the layer."""
    form = form_of(module)
    if form is None or form.as_held is None:
        return _as_it_is
    return form.as_held


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def computes_weight(module: nn.Module) -> bool:
    """Whether the layer holds no weight that could be set: it computes the one by which it multiplies."""
    form = form_of(module)
    return form is not None and form.as_plain is not None and form.as_held is None


def is_matrix(module: nn.Module) -> bool:
    """Whether the layer is known to apply one matrix to each input, or each patch of it, and nothing else."""
    if not _may_be_covered(module) or is_factorized(module) or obstacle(module) is not None:
        return False
    return not isinstance(module, nn.Embedding) and getattr(module, "groups", 1) == 1


def matrices(module: nn.Module) -> tuple[str, ...]:
    """The attributes that hold what a layer multiplies by, as it reads them at each call; none of what is no layer."""
    if isinstance(module, nn.MultiheadAttention):
        return tuple(key for key in _IN_PROJECTIONS if getattr(module, key, None) is not None)
    return ("weight",) if isinstance(module, PLAIN) or form_of(module) is not None else ()


def type_of(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote: a parametrization makes it a dynamic one."""
    return parametrize.type_before_parametrizations(module)


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that make the weight of a layer: itself, what it is parametrized by, or its factors."""
    if parametrize.is_parametrized(module, "weight"):
        return list(module.parametrizations["weight"].parameters())  # pyright: ignore
    weight = module._parameters.get("weight")
    if weight is not None:
        return [weight]
    return [p for key in WEIGHTS for p in _held(module, key)]


def is_factorized(module: nn.Module) -> bool:
    """Whether the module holds factors already."""
    return hasattr(module, "structure") and hasattr(module, "ranks")


def find(model: nn.Module) -> list[Layer]:
    """Every layer whose weight has, or could have, a factorized form, in the order of the network."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    modules = {name: module for name, module in model.named_modules() if name and _may_be_covered(module)}
    users, outside = _users(model), _held_outside(model)
    found = []
    for members in _by_weight(modules):
        every = tuple(name for module in members.values() for name in names[id(module)])
        found.append(Layer(members, every, _obstacle_of(members, users, outside)))
    return found


def _may_be_covered(module: nn.Module) -> bool:
    return isinstance(module, PLAIN) or form_of(module) is not None or is_factorized(module)


def _by_weight(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    groups: list[dict[str, nn.Module]] = []
    group_of: dict[int, dict[str, nn.Module]] = {}
    for name, module in modules.items():
        keys = [id(weight) for weight in weights_of(module)]
        group = next((group_of[key] for key in keys if key in group_of), None)
        if group is None:
            groups.append(group := {})
        group[name] = module
        group_of |= dict.fromkeys(keys, group)
    yield from groups


def _users(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """By parameter, the names under which it is held, each with the module that has it."""
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append((f"{name}.{key}" if name else key, module))
    return users


def _held_outside(model: nn.Module) -> dict[int, str]:
    """Modules that plain attributes hold (lists, dictionaries, bound methods): these are not reached by replacing."""
    held: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                held |= {id(found): f"{name}.{key}" if name else key for found in _modules_in(value)}
    return held


def _modules_in(value: Any, depth: int = 0) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(getattr(value, "__self__", None), nn.Module):
        yield value.__self__
    elif isinstance(value, list | tuple | dict) and depth < 3:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(item, depth + 1)


def _obstacle_of(
    members: Mapping[str, nn.Module],
    users: Mapping[int, list[tuple[str, nn.Module]]],
    outside: Mapping[int, str],
) -> str | None:
    tied = f"; it is tied with {', '.join(members)}" if len(members) > 1 else ""
    for name, module in members.items():
        own = None if is_factorized(module) else obstacle(module)
        if own is not None:
            return own if not tied else f"{name}: {own}{tied}"
        if id(module) in outside:
            return f"'{outside[id(module)]}' holds it outside of the network's modules, where it would stay dense"
    if tied and any(parametrize.is_parametrized(module, "weight") for module in members.values()):
        return f"what its weight is made of is tied{tied[4:]}"
    parts = {id(part) for module in members.values() for part in module.modules()}
    for module in members.values():
        for weight in weights_of(module):
            for name, user in users.get(id(weight), ()):
                if id(user) not in parts:
                    return f"its weight is '{name}' as well, which no factorized form can stand for"
    return None


def _with_same_attributes(module: nn.Module) -> Plain:
    base = next(base for base in PLAIN if isinstance(module, base))
    made = base.__new__(base)
    nn.Module.__init__(made)
    inner = set(vars(made))
    for key, value in vars(module).items():
        if key not in inner and key != "parametrizations":
            setattr(made, key, value)
    made.training = module.training
    for key in ("weight", "bias"):
        value = effective(module, key)
        made.register_parameter(key, None if value is None else _parameter(value))
    return made


@torch.no_grad()
def effective(module: nn.Module, key: str) -> Tensor | None:
    """A parameter as evaluation reads it; a parametrization is left as it was (spectral norm would iterate)."""
    if not parametrize.is_parametrized(module, key):
        return getattr(module, key, None)
    stack: nn.Module = module.parametrizations[key]  # pyright: ignore
    modes = {part: part.training for part in stack.modules()}
    stack.eval()
    try:
        return getattr(module, key).clone()
    finally:
        for part, mode in modes.items():
            part.training = mode


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())


def _held(module: nn.Module, key: str) -> list[nn.Parameter]:
    value = getattr(module, key, None)
    return [value] if isinstance(value, nn.Parameter) else list(getattr(value, "parameters", list)())


def _name_of(called: Any) -> str:
    return getattr(called, "__name__", None) or type(called).__name__

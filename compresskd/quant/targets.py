"""What of a module is quantized: its weights, and the vectors beside them.

A weight is rounded as it is read, and what is stored are its rounded values. So whatever reads `layer.weight` computes
with what is stored, a subclass with a forward of its own too, and this is exact for every layer of `layers.PLAIN`, what
derives from them, the layers that are known or registered, and the projections inside nn.MultiheadAttention. It is not
where a weight is made of other parameters, or where somebody holds the parameter itself: such weights are left, see
`unquantized`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import layers

CORES = "cores"  # the parameter list that holds the cores of a tensor train
_FACTORS = "factors"  # and that of the factors of a CP or Tucker form
_STATISTICS = nn.modules.batchnorm._NormBase


@dataclass(frozen=True)
class Target:
    """One parameter or buffer to quantize.

    `name` is that of the parameter in the whole module, `owner` that of the layer it belongs to, `holder`
    and `key` say where it hangs; `is_core` tells a core of a factorized layer from the weight of an ordinary
    one, as which the matrices count that a factorized layer applies in turn. A tied parameter is one target: `also`
    says where else it hangs, `owners` are all layers that use it. `output_dim` is the dimension of the layer's outputs.
    """

    name: str
    owner: str
    holder: nn.Module
    key: str
    is_core: bool = False
    also: tuple[tuple[nn.Module, str], ...] = ()
    owners: tuple[str, ...] = ()
    output_dim: int = 0

    @property
    def value(self) -> Tensor:
        """The parameter as the layer reads it."""
        return getattr(self.holder, self.key)

    @property
    def is_statistic(self) -> bool:
        """Whether batch norm changes it while training, and reads it only afterwards."""
        return isinstance(self.holder, _STATISTICS) and self.key in self.holder._buffers


def find_targets(module: nn.Module) -> list[Target]:
    """The weights of all layers that are known, and all cores and factors; tied ones once."""
    hanging = _hanging(module)
    owners = _owners(module)
    found: dict[int, Target] = {}
    for owner, layer in module.named_modules():
        for name, holder, key, is_core in _weights_of(owner, layer):
            source = id(_source(holder, key))
            places = hanging[source]
            is_prepared = parametrize.is_parametrized(holder, key)
            if source not in found and (is_prepared or _obstacle(places) is None):
                also = () if is_prepared else _others(places, holder, key)
                form = None if is_core else layers.form_of(layer)
                dim = 0 if form is None else form.output_dim
                found[source] = Target(name, owner, holder, key, is_core, also, owners[source], dim)
    return list(found.values())


def unquantized(module: nn.Module) -> dict[str, str]:
    """Of every layer of a kind that is quantized, but whose own weight cannot be, the reason."""
    hanging, reasons = _hanging(module), {}
    for name, layer in module.named_modules():
        for key in layers.matrices(layer):
            if key not in layer._parameters:
                made = ", ".join(type(p).__name__.lstrip("_") for p in _parametrizations(layer, key))
                how = f"parametrized ({made})" if made else "made anew at every call"
                reasons[name] = (
                    f"its weight is {how}, and the parameters that it is made of are what is stored"
                )
            else:
                reasons[name] = _obstacle(hanging[id(layer._parameters[key])])
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _weights_of(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module, str, bool]]:
    """Name, holder and key of what is a weight of this layer, and whether it is a core."""
    for key in layers.matrices(layer):
        if layer._parameters.get(key) is not None or _is_prepared(layer, key):
            yield join(name, key), layer, key, False
    for kind in (CORES, _FACTORS):
        factors = layer._modules.get(kind)
        if isinstance(factors, nn.ParameterList):
            for k in range(len(factors)):
                yield join(name, f"{kind}.{k}"), factors, str(k), not getattr(layer, "OF_MATRICES", False)
    if _FACTORS in layer._modules and isinstance(getattr(layer, "core", None), Tensor):
        yield join(name, "core"), layer, "core", True


def _is_prepared(layer: nn.Module, key: str) -> bool:
    return any(hasattr(part, "convert") for part in _parametrizations(layer, key))


def _parametrizations(layer: nn.Module, key: str) -> list[nn.Module]:
    if not parametrize.is_parametrized(layer, key):
        return []
    return list(layer.parametrizations[key].children())  # pyright: ignore


def _hanging(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By parameter or buffer, every place where it hangs."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for holder in module.modules():
        for key, value in (*holder._parameters.items(), *holder._buffers.items()):
            if value is not None:
                places.setdefault(id(value), []).append((holder, key))
    return places


def _owners(module: nn.Module) -> dict[int, tuple[str, ...]]:
    """By parameter, the layers that it is a weight of."""
    owners: dict[int, tuple[str, ...]] = {}
    for owner, layer in module.named_modules():
        for _, holder, key, _ in _weights_of(owner, layer):
            source = id(_source(holder, key))
            owners[source] = (*owners.get(source, ()), owner)
    return owners


def _source(holder: nn.Module, key: str) -> Tensor:
    """The parameter itself, also where it is rounded as it is read."""
    if parametrize.is_parametrized(holder, key):
        return holder.parametrizations[key].original  # pyright: ignore
    return holder._parameters[key]  # pyright: ignore[reportReturnType]


def _others(
    places: Sequence[tuple[nn.Module, str]], holder: nn.Module, key: str
) -> tuple[tuple[nn.Module, str], ...]:
    return tuple((h, k) for h, k in places if (h, k) != (holder, key))


def _obstacle(places: list[tuple[nn.Module, str]]) -> str | None:
    """Why a parameter that hangs in these places cannot be rounded as it is read."""
    for holder, _ in places:
        if isinstance(holder, nn.RNNBase):
            return f"its weight is {type(holder).__name__}'s too, which reads parameters by references of its own"
        if isinstance(holder, parametrize.ParametrizationList):
            return "its weight is what another one is made of"
        if isinstance(holder, nn.ParameterDict):
            return "its weight is in a ParameterDict too"
    return None


def find_vectors(module: nn.Module, weights: Collection[Target]) -> Iterator[Target]:
    """Every floating-point parameter, and every such buffer that is saved, which is none of `weights`.

    Those of recurrent layers are left out, since these layers keep references to them, and what weights are made of.
    """
    taken = {(id(t.holder), t.key) for t in weights} | {(id(h), k) for t in weights for h, k in t.also}
    hanging = _hanging(module)
    left = {value for value, places in hanging.items() if _obstacle(places) is not None}
    stacks = (part for part in module.modules() if isinstance(part, parametrize.ParametrizationList))
    inner = {id(part) for stack in stacks for part in stack.modules()}
    seen: set[int] = set()
    for name, holder in module.named_modules():
        if isinstance(holder, nn.RNNBase) or id(holder) in inner:
            continue
        saved = [k for k in holder._buffers if k not in holder._non_persistent_buffers_set]
        for key in (*holder._parameters, *saved):
            value = getattr(holder, key)
            if value is None or not value.is_floating_point() or (id(holder), key) in taken:
                continue
            if id(value) not in left and id(value) not in seen:
                seen.add(id(value))
                also = _others(hanging.get(id(value), ()), holder, key)
                yield Target(join(name, key), name, holder, key, also=also, owners=(name,))


def join(prefix: str, name: str) -> str:
    """A dotted name."""
    return f"{prefix}.{name}" if prefix else name

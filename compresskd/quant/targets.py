"""What of a module is quantized: its weights, and the vectors beside them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

CORES = "cores"  # the parameter list that holds the cores of a tensor train
_FACTORS = "factors"  # and that of the factors of a CP or Tucker form
_STATISTICS = nn.modules.batchnorm._NormBase


@dataclass(frozen=True)
class Target:
    """One parameter or buffer to quantize.

    `name` is that of the parameter in the whole module, `owner` that of the layer it belongs to, `holder`
    and `key` say where it hangs; `is_core` tells a core of a factorized layer from the weight of an ordinary
    one.
    """

    name: str
    owner: str
    holder: nn.Module
    key: str
    is_core: bool = False

    @property
    def value(self) -> Tensor:
        """The parameter as the layer reads it."""
        return getattr(self.holder, self.key)

    @property
    def is_statistic(self) -> bool:
        """Whether batch norm changes it while training, and reads it only afterwards."""
        return isinstance(self.holder, _STATISTICS) and self.key in self.holder._buffers


def find_targets(module: nn.Module) -> list[Target]:
    """The weights of all Linear, Conv2d and Embedding, and all cores and factors of factorized layers."""
    targets = []
    for name, holder in module.named_modules():
        parent, _, last = name.rpartition(".")
        if isinstance(holder, nn.Linear | nn.Conv2d | nn.Embedding):
            targets.append(Target(join(name, "weight"), name, holder, "weight"))
        elif isinstance(holder, nn.ParameterList) and last in (CORES, _FACTORS):
            targets += [Target(join(name, str(k)), parent, holder, str(k), True) for k in range(len(holder))]
            outer = module.get_submodule(parent)
            if last == _FACTORS and isinstance(getattr(outer, "core", None), Tensor):
                targets.append(Target(join(parent, "core"), parent, outer, "core", True))
    return targets


def find_vectors(module: nn.Module, weights: Collection[Target]) -> Iterator[Target]:
    """Every floating-point parameter, and every such buffer that is saved, which is none of `weights`.

    Those of recurrent layers are left out: these layers keep references to them.
    """
    taken = {(id(target.holder), target.key) for target in weights}
    for name, holder in module.named_modules():
        if isinstance(holder, nn.RNNBase):
            continue
        saved = [k for k in holder._buffers if k not in holder._non_persistent_buffers_set]
        for key in (*holder._parameters, *saved):
            value = getattr(holder, key)
            if value is not None and value.is_floating_point() and (id(holder), key) not in taken:
                yield Target(join(name, key), name, holder, key)


def join(prefix: str, name: str) -> str:
    """A dotted name."""
    return f"{prefix}.{name}" if prefix else name

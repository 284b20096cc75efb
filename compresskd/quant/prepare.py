"""Quantization-aware training of a whole module: what is quantized, how, and what comes out.

    prepare(model, QuantSpec(bits=4))      # every weight is now rounded as it is read; train as ever
    freeze(model)                          # before the last epochs
    tensors = convert(model)               # {"fc1.cores.0": QuantizedTensor, ...}, exactly what was evaluated

Names of parameters are those of the module before `prepare`. A prepared module is not taken apart again (a
deep copy shares its class): build a fresh one and load `plain_state_dict` or the values of `convert`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input
from compresskd.quant.fake_quantize import ESTIMATORS, FakeQuant
from compresskd.quant.granularity import Granularity, PerChannel, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.scale import METHODS

_CORES = "cores"  # the parameter list that holds the cores of a factorized layer


@dataclass(frozen=True)
class Target:
    """One parameter to quantize.

    `name` is that of the parameter in the whole module, `owner` that of the layer it belongs to, `holder`
    and `key` say where it hangs; `is_core` tells a core of a factorized layer from the weight of an ordinary
    one.
    """

    name: str
    owner: str
    holder: nn.Module
    key: str
    is_core: bool

    @property
    def value(self) -> Tensor:
        """The parameter as the layer reads it."""
        return getattr(self.holder, self.key)


@dataclass(frozen=True)
class QuantSpec:
    """How the weights of a model are quantized.

    Args:
        bits: 2, 3, 4 or 8. grid: of the weights of Linear, Conv2d and Embedding. granularity: of these
        weights. core_grid: of tensor-train cores. core_granularity: of tensor-train cores. estimator:
        `learned_step` or `straight_through`. initial_scale: `mse` or `absmax`. activation_bits: 8 to round
        the inputs of the quantized layers as well, None to leave them. layers: bits of single layers by
        pattern of the layer's name (shell-style, the first that fits counts);
            0 leaves a layer in float.

    Raises:
        ValueError: a value that is not allowed, with its configuration key.
    """

    bits: int = 8
    grid: str = "symmetric"
    granularity: Granularity = field(default_factory=PerChannel)
    core_grid: str = "half_integer"
    core_granularity: Granularity = field(default_factory=PerTensor)
    estimator: str = "learned_step"
    initial_scale: str = "mse"
    activation_bits: int | None = None
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for bits in (self.bits, *(bits for bits in self.layers.values() if bits != 0)):
            Grid(bits, self.grid)
            Grid(bits, self.core_grid)
        _check_choice("quant.estimator", self.estimator, ESTIMATORS)
        _check_choice("quant.initial_scale", self.initial_scale, METHODS)
        if self.activation_bits not in (None, 8):
            raise ValueError(f"quant.activation_bits: expected 8 or null, got {self.activation_bits!r}")

    def bits_of(self, owner: str) -> int:
        """Bits of the layer of this name; 0 where it stays in float."""
        return next((bits for pattern, bits in self.layers.items() if fnmatchcase(owner, pattern)), self.bits)

    def grid_of(self, target: Target) -> Grid:
        """The grid of a weight that is quantized."""
        return Grid(self.bits_of(target.owner), self.core_grid if target.is_core else self.grid)

    def granularity_of(self, target: Target) -> Granularity:
        """Which elements of a weight share a scale."""
        return self.core_granularity if target.is_core else self.granularity


def find_targets(module: nn.Module) -> list[Target]:
    """The weights of all Linear, Conv2d and Embedding, and all parameters in lists named `cores`."""
    targets = []
    for name, holder in module.named_modules():
        parent, _, last = name.rpartition(".")
        if isinstance(holder, nn.Linear | nn.Conv2d | nn.Embedding):
            targets.append(Target(_join(name, "weight"), name, holder, "weight", False))
        elif isinstance(holder, nn.ParameterList) and last == _CORES:
            targets += [Target(_join(name, str(k)), parent, holder, str(k), True) for k in range(len(holder))]
    return targets


def prepare(
    module: nn.Module, spec: QuantSpec, *, start: Mapping[str, QuantizedTensor] | None = None
) -> dict[str, FakeQuant]:
    """Round the weights of `module` as they are read, from now on; in place.

    Args:
        module: ordinary and factorized layers; tied weights share one `FakeQuant`. spec: how. start: scales
        to start from by parameter name, such as `quantize_cores` found them. The float values are
            the module's own: load the gauged cores first.

    Returns:
        The parametrizations by parameter name.

    Raises:
        ValueError: nothing to quantize, a pattern in `spec.layers` or a name in `start` that fits nothing, a
        module
            that was prepared before, or a granularity that does not fit a weight (named).
    """
    targets = find_targets(module)
    start = start or {}
    _check_names(targets, spec, start)
    chosen = [target for target in targets if spec.bits_of(target.owner)]
    if not chosen:
        raise ValueError(
            "quant: nothing to quantize: no Linear, Conv2d, Embedding or cores, or all set to 0 bits"
        )
    by_tensor: dict[int, FakeQuant] = {}
    made = {}
    for target in chosen:
        weight = target.value
        if id(weight) not in by_tensor:
            by_tensor[id(weight)] = _fake_quant(target, spec, start.get(target.name))
        made[target.name] = by_tensor[id(weight)]
        parametrize.register_parametrization(target.holder, target.key, made[target.name])
        target.holder.train(
            target.holder.training
        )  # what was added is in training mode whatever its holder is in
    if spec.activation_bits is not None:
        for owner in dict.fromkeys(target.owner for target in chosen):
            layer = module.get_submodule(owner)
            quantize_input(layer, ActivationQuant(estimator=spec.estimator).train(layer.training))
    return made


def convert(module: nn.Module) -> dict[str, QuantizedTensor]:
    """The integers of every prepared weight by parameter name; `dequantize` gives exactly what was evaluated."""
    return {name: quant.convert(original) for name, quant, original in parametrized(module)}


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state of the module as if it had never been prepared, with the rounded weights in place of the float ones.

    A freshly built module of the same structure loads it; activation quantizers are left out.
    """
    added = {"parametrizations", CHILD}
    state = {name: value for name, value in module.state_dict().items() if not added & set(name.split("."))}
    for name, quant, original in parametrized(module):
        state[name] = quant.convert(original).dequantize().to(original.dtype)
    return state


def parametrized(module: nn.Module) -> Iterator[tuple[str, FakeQuant, Tensor]]:
    """Parameter name, parametrization and float weight of everything that was prepared."""
    for name, holder in module.named_modules():
        stacks = getattr(holder, "parametrizations", None) if parametrize.is_parametrized(holder) else None
        for key, stack in stacks.items() if isinstance(stacks, nn.ModuleDict) else ():
            for quant in stack.children():
                if isinstance(quant, FakeQuant):
                    yield _join(name, key), quant, cast(Tensor, stack.original)


def enable(module: nn.Module) -> None:
    """Round weights and activations (again)."""
    _set_enabled(module, True)


def disable(module: nn.Module) -> None:
    """Let float weights and activations pass, until `enable`."""
    _set_enabled(module, False)


def freeze(module: nn.Module) -> None:
    """Fix all scales, zero points and observed ranges."""
    for quant in module.modules():
        if isinstance(quant, FakeQuant | ActivationQuant):
            quant.freeze()


def _set_enabled(module: nn.Module, enabled: bool) -> None:
    for quant in module.modules():
        if isinstance(quant, FakeQuant | ActivationQuant):
            quant.enabled = enabled


def _fake_quant(target: Target, spec: QuantSpec, start: QuantizedTensor | None) -> FakeQuant:
    try:
        return FakeQuant(
            target.value,
            spec.grid_of(target),
            spec.granularity_of(target),
            estimator=spec.estimator,
            initial_scale=spec.initial_scale,
            start=start,
        )
    except ValueError as error:
        raise ValueError(f"'{target.name}': {error}") from error


def _check_names(targets: list[Target], spec: QuantSpec, start: Mapping[str, QuantizedTensor]) -> None:
    owners = sorted({target.owner for target in targets})
    for pattern in spec.layers:
        if not any(fnmatchcase(owner, pattern) for owner in owners):
            raise ValueError(f"quant.layers: '{pattern}' fits none of the layers {owners}")
    unknown = sorted(start.keys() - {target.name for target in targets})
    if unknown:
        raise ValueError(f"start: {unknown} are no weights that can be quantized")
    for target in targets:
        if parametrize.is_parametrized(target.holder, target.key):
            raise ValueError(
                f"'{target.name}' is parametrized already: prepare a module once, from its float form"
            )


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}: expected one of {', '.join(allowed)}, got {value!r}")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

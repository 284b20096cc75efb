"""Quantization-aware training of a whole module: what is quantized, how, and what comes out.

    prepare(model, QuantSpec(bits=4))      # every weight is now rounded as it is read; train as ever
    freeze(model)                          # before the last epochs
    tensors = convert(model)               # {"fc1.cores.0": QuantizedTensor, ...}, exactly what was evaluated

Names of parameters are those of the module before `prepare`. A prepared module is not taken apart again (a
deep copy shares its class): build a fresh one and load `plain_state_dict` or the values of `convert`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, TypeVar, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import layers
from compresskd.options import OptionError, checked, one_of
from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input
from compresskd.quant.fake_quantize import ESTIMATORS, FakeQuant
from compresskd.quant.granularity import Granularity, PerChannel, PerRankSlice, PerTensor
from compresskd.quant.grid import BITS, KINDS, Grid
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.scale import METHODS
from compresskd.quant.targets import Target, find_targets, find_vectors, join
from compresskd.quant.vectors import Half

OTHER_BITS = (4, 8, 16, 32)
_CORE_DIMS = 4
Quant = TypeVar("Quant", bound=nn.Module)


@checked
@dataclass(frozen=True)
class QuantSpec:
    """How the weights of a model are quantized.

    Args:
        bits: 2, 3, 4 or 8.
        grid: of the weights of ordinary layers.
        granularity: of these weights.
        core_grid: of the cores and factors of factorized layers.
        core_granularity: of these. Factors that are no cores of a train (of Tucker, CP, interpolative and grouped
            layers) have one scale each where it is that of slices by TT-rank.
        estimator: `lsq` or `straight_through`.
        initial_scale: `mse` or `absmax`.
        activation_bits: 8 to round the inputs of the quantized layers as well, None to leave them.
        layers: bits of single layers by pattern of the layer's name (shell-style, the first that fits counts);
            0 leaves a layer in float.
        other_bits: of all that is no weight: 16 for half precision, 8 or 4 for integers at one scale a tensor,
            32 to leave it. Running statistics stay at 16 where fewer are asked for: a variance that is rounded
            to zero is divided by.

    Raises:
        ValueError: a value that is not allowed, with its configuration key.
    """

    bits: Annotated[int, one_of(*BITS)] = 8
    grid: Annotated[str, one_of(*KINDS)] = "symmetric"
    granularity: Granularity = field(default_factory=PerChannel)
    core_grid: Annotated[str, one_of(*KINDS)] = "half_integer"
    core_granularity: Granularity = field(default_factory=PerTensor)
    estimator: Annotated[str, one_of(*ESTIMATORS)] = "lsq"
    initial_scale: Annotated[str, one_of(*METHODS)] = "mse"
    activation_bits: Annotated[int, one_of(8)] | None = None
    layers: Mapping[str, Annotated[int, one_of(0, *BITS)]] = field(default_factory=dict)
    other_bits: Annotated[int, one_of(*OTHER_BITS)] = 32

    def __post_init__(self) -> None:
        for bits in (self.bits, *(bits for bits in self.layers.values() if bits != 0)):
            Grid(bits, self.grid)
            Grid(bits, self.core_grid)

    def bits_of(self, owner: str) -> int:
        """Bits of the layer of this name; 0 where it stays in float."""
        return next((bits for pattern, bits in self.layers.items() if fnmatchcase(owner, pattern)), self.bits)

    def grid_of(self, target: Target) -> Grid:
        """The grid of a weight that is quantized."""
        return Grid(self.bits_of(target.owner), self.core_grid if target.is_core else self.grid)

    def granularity_of(self, target: Target) -> Granularity:
        """Which elements of a weight share a scale; a factor that is no core of a train has no slices by TT-rank."""
        if target.is_core:
            of_slices = isinstance(self.core_granularity, PerRankSlice)
            return PerTensor() if of_slices and target.value.dim() != _CORE_DIMS else self.core_granularity
        is_channel = self.granularity == PerChannel()
        return PerChannel(target.output_dim) if is_channel else self.granularity


def prepare(
    module: nn.Module, spec: QuantSpec, *, start: Mapping[str, QuantizedTensor] | None = None
) -> dict[str, FakeQuant]:
    """Round the weights and vectors of `module` as they are read, from now on; in place.

    Args:
        module: ordinary and factorized layers; tied weights share one `FakeQuant`, and frozen ones have a frozen one.
        spec: how.
        start: scales to start from by parameter name, such as `quantize_cores` found them. The float values are
            the module's own: load the gauged cores first.

    Returns:
        The parametrizations of the weights by parameter name.

    Raises:
        ValueError: nothing to quantize, a pattern in `spec.layers` or a name in `start` that fits nothing, a
            module that was prepared before, or a granularity that does not fit a weight (named).
    """
    targets = find_targets(module)
    start = start or {}
    _check_names(targets, spec, start)
    chosen = [target for target in targets if spec.bits_of(target.owner)]
    if not chosen:
        raise OptionError("layers", dict(spec.layers), f"{layers.NAMES}, or cores, with more than 0 bits")
    trained = {owner: target.value.requires_grad for target in chosen for owner in target.owners}
    vectors = [] if spec.other_bits == 32 else list(find_vectors(module, targets))
    made = _attach(chosen, lambda target: _fake_quant(target, spec, start.get(target.name)))
    _attach(vectors, lambda target: _of_vector(target, spec.other_bits))
    if spec.activation_bits is not None:
        for owner, is_trained in trained.items():
            layer = module.get_submodule(owner)
            if isinstance(
                layer, nn.MultiheadAttention
            ):  # three inputs, and one operation that reads all weights
                continue
            quant = ActivationQuant(estimator=spec.estimator).train(layer.training)
            quantize_input(layer, quant if is_trained else quant.requires_grad_(False))
    return made


def _attach(targets: Sequence[Target], make: Callable[[Target], Quant]) -> dict[str, Quant]:
    """Parametrize every target, in all places of a tied one by one module; the modules by parameter name."""
    made: dict[str, Quant] = {}
    for target in targets:
        quant = made[target.name] = make(target)
        if isinstance(quant, FakeQuant) and not target.value.requires_grad:
            quant.requires_grad_(False)
            quant.freeze()
        for holder, key in ((target.holder, target.key), *target.also):
            parametrize.register_parametrization(holder, key, quant)
            holder.train(holder.training)  # what was added is in training mode whatever its holder is in
    return made


def _of_vector(target: Target, bits: int) -> FakeQuant | Half:
    if bits == 16 or target.is_statistic:
        return Half(is_statistic=target.is_statistic)
    # A learned scale would never leave that of a bias which starts at zero: the scale follows the range instead.
    return FakeQuant(target.value, Grid(bits), estimator="straight_through", initial_scale="absmax")


def convert(module: nn.Module) -> dict[str, QuantizedTensor | Tensor]:
    """What is stored of every prepared tensor by its plain name; its values are exactly what was evaluated.

    A QuantizedTensor, or a float16 tensor for a vector in half precision; the very same one under all tied names.
    """
    stored: dict[int, QuantizedTensor | Tensor] = {}
    found: dict[str, QuantizedTensor | Tensor] = {}
    for name, quant, original in _prepared(module, every_name=True):
        if id(original) not in stored:
            stored[id(original)] = quant.convert(original)
        found[name] = stored[id(original)]
    return found


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state of the module as if it had never been prepared, with the rounded values in place of the float ones.

    A freshly built module of the same structure loads it; activation quantizers are left out. Tied names have the
    very same tensor.
    """
    values: dict[int, Tensor] = {}
    held = _held(module)
    for name, stored in convert(module).items():
        original = held[name]
        plain = stored.dequantize() if isinstance(stored, QuantizedTensor) else stored
        values.setdefault(id(original), plain.to(original.dtype))
    return {name: values.setdefault(id(value), value.detach()) for name, value in held.items()}


def frozen(module: nn.Module) -> list[str]:
    """Plain names of the parameters that are not trained."""
    held = _held(module).items()
    return [name for name, value in held if isinstance(value, nn.Parameter) and not value.requires_grad]


def _held(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers themselves by plain name."""
    prepared = {name: original for name, _, original in _prepared(module, every_name=True)}
    stacks = tuple(f"{_stack_name(name)}." for name in prepared)
    state = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if not name.startswith(stacks) and CHILD not in name.split(".")
    }
    return state | prepared


def _stack_name(name: str) -> str:
    holder, _, key = name.rpartition(".")
    return join(join(holder, "parametrizations"), key)


def parametrized(module: nn.Module) -> Iterator[tuple[str, FakeQuant, Tensor]]:
    """Plain name, parametrization and float values of everything that is rounded to integers, tied ones once."""
    for name, quant, original in _prepared(module):
        if isinstance(quant, FakeQuant):
            yield name, quant, original


def _prepared(
    module: nn.Module, *, every_name: bool = False
) -> Iterator[tuple[str, FakeQuant | Half, Tensor]]:
    seen: set[int] = set()
    for name, holder in module.named_modules(remove_duplicate=not every_name):
        stacks = getattr(holder, "parametrizations", None) if parametrize.is_parametrized(holder) else None
        for key, stack in stacks.items() if isinstance(stacks, nn.ModuleDict) else ():
            for quant in stack.children():
                if isinstance(quant, FakeQuant | Half) and (every_name or id(stack.original) not in seen):
                    seen.add(id(stack.original))
                    yield join(name, key), quant, cast(Tensor, stack.original)


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
        if isinstance(quant, FakeQuant | Half | ActivationQuant):
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
    owners = sorted({owner for target in targets for owner in target.owners})
    for pattern in spec.layers:
        if not any(fnmatchcase(owner, pattern) for owner in owners):
            raise OptionError("layers", pattern, f"a pattern that fits one of the layers {', '.join(owners)}")
    unknown = sorted(start.keys() - {target.name for target in targets})
    if unknown:
        raise ValueError(f"start: {unknown} are no weights that can be quantized")
    for target in targets:
        wished = {owner: spec.bits_of(owner) for owner in target.owners}
        if len(set(wished.values())) > 1:
            raise OptionError("layers", wished, "the same bits for layers that share one weight")
        if parametrize.is_parametrized(target.holder, target.key):
            raise ValueError(
                f"'{target.name}' is parametrized already: prepare a module once, from its float form"
            )

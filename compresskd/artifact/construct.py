"""From what a file says to a network, without running what it names and without building what it cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from compresskd.artifact.content import Content, check, check_finite, check_plain, packages, targets
from compresskd.artifact.errors import ArtifactError
from compresskd.layers import surgery
from compresskd.models.build import build as construct
from compresskd.models.build import spec_of
from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input
from compresskd.quant.pack import QuantizedTensor
from compresskd.targets.kinds import PART

_DRAWS = (Tensor.normal_, Tensor.uniform_)
_MAX_MODULES = 10_000  # of the deepest networks; more are refused while they are being built
_MAX_PER_MODULE = 1000  # numbers in a module's structure: modes and ranks are dozens
_MAX_EXPANSION = 4096  # values of the dense architecture for each that is stored
_ALWAYS_ALLOWED = 2**26  # values: a quarter of a gigabyte
# Models of other libraries, which may need memory to be built.
_ADAPTERS = ("compresskd.models.timm.timm", "compresskd.models.huggingface.huggingface")


def build(content: Content, *, trust: Sequence[str] = (), take: bool = False) -> nn.Module:
    """The network, in evaluation mode and with ordinary parameters.

    Quantized tensors are there as their values; input quantizers are attached again, frozen.

    Args:
        content: the model as values.
        trust: packages besides compresskd whose architecture and modules may be built.
        take: let the network hold the tensors of the content, which is of no use to anybody else then.

    Raises:
        ArtifactError: values that no model has, tensors that do not fit the architecture, or an architecture
            that is out of all proportion to them.
        ValueError: a path outside compresskd and `trust`, or options that the constructor refuses.
    """
    check(content)
    _check_whole(content, trust)
    with _WithoutDrawing():
        described = {"architecture": content.architecture, "modules": content.modules}
        model = build_empty(described, trust=trust)
    _fill(model, content.tensors, take)
    check_finite(model)
    for name, (scale, zero_point) in content.activations.items():
        quantize_input(_layer(model, name), _frozen(scale, zero_point))
    return model.eval()


def _check_whole(content: Content, trust: Sequence[str]) -> None:
    """Raise where the tensors do not fit; of what is built for it, nothing stays."""
    empty = skeleton(content.architecture, stored=num_values(content), trust=trust)
    check_fit(furnish(empty, content.modules, stored=num_values(content), trust=trust), content.tensors)


def build_empty(described: Mapping[str, Any], *, trust: Sequence[str] = ()) -> nn.Module:
    """The module of an `architecture` and its structured `modules`, with parameters of no particular value."""
    model = _construct(described["architecture"], trust)
    surgery.apply_structure(model, described["modules"], trust=trust)
    return model


def skeleton(architecture: Mapping[str, Any], *, stored: int, trust: Sequence[str] = ()) -> nn.Module:
    """An architecture without memory: names, shapes and types of what is to be filled.

    Constructors of trusted packages may need real memory, and get it; so do those of libraries that read numbers which
    they compute, such as rates of drop path in many versions of timm.

    Args:
        architecture: as in Content.
        stored: about how many values the file holds; an architecture of thousands of times more is refused.
        trust: as `load`'s.
    """
    try:
        with _without_memory(targets(architecture), stored, trust):
            return _construct(architecture, trust)
    except ValueError as error:
        reads_values = isinstance(error.__cause__, RuntimeError)  # which there are none of
        if architecture.get("target") not in _ADAPTERS or not reads_values:
            raise
    with _WithoutDrawing(), _in_proportion(stored):
        return _construct(architecture, trust)


def furnish(
    model: nn.Module, modules: Mapping[str, Mapping[str, Any]], *, stored: int, trust: Sequence[str] = ()
) -> nn.Module:
    """Put the structured modules into a skeleton, in place; arguments as its."""
    for name, values in modules.items():
        check_plain(dict(values), f"modules: '{name:.80}'", _MAX_PER_MODULE)
    with _without_memory([values["class"] for values in modules.values()], stored, trust):
        surgery.apply_structure(model, modules, trust=trust)
    return model


def thaw(model: nn.Module) -> nn.Module:
    """Make trainable what the architecture, as its constructor makes it, has trainable; the rest is frozen.

    Of a model that does not say how it was built, everything is.
    """
    if not hasattr(model, "spec"):
        return model.requires_grad_(True)
    trust, stored = packages(model), sum(value.numel() for value in model.state_dict().values())
    born = skeleton(spec_of(model), stored=stored, trust=trust)
    furnish(born, surgery.structure(model), stored=stored, trust=trust)
    trainable = {name: parameter.requires_grad for name, parameter in born.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable.get(name, True))
    return model


def num_values(content: Content) -> int:
    """How many numbers the tensors have."""
    return sum(value.shape.numel() for value in content.tensors.values())


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor | QuantizedTensor]) -> None:
    """Raise ArtifactError where the tensors are not exactly those of the network."""
    state = model.state_dict()
    faults = [f"Missing key: {name}" for name in state if name not in tensors]
    faults += [f"Unexpected key: {name}" for name in tensors if name not in state]
    faults += [
        f"size mismatch for {name}: {tuple(tensors[name].shape)} stored, the architecture has {tuple(own.shape)}"
        for name, own in state.items()
        if name in tensors and tensors[name].shape != own.shape
    ]
    if faults:
        raise ArtifactError("; ".join(faults[:10]) + (" ..." if len(faults) > 10 else ""))


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor | QuantizedTensor], take: bool) -> None:
    """Load the values; what is neither quantized nor half precision keeps the type that it was stored in."""
    done: set[int] = set()
    for name, own in model.state_dict(keep_vars=True).items():
        stored = tensors[name]
        if id(own) in done or not isinstance(own, Tensor):
            continue
        done.add(id(own))
        value = stored.dequantize() if isinstance(stored, QuantizedTensor) else stored
        if isinstance(stored, Tensor) and stored.dtype not in (torch.float16, own.dtype):
            own.data = own.data.to(stored.dtype)
        if (take or value is not stored) and value.dtype == own.dtype and value.device == own.device:
            own.data = value
        else:
            own.copy_(value)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArtifactError(
            f"the architecture has no layer '{name}' whose input could be quantized"
        ) from None


def _frozen(scale: Tensor, zero_point: Tensor) -> ActivationQuant:
    quant = ActivationQuant()
    with torch.no_grad():
        quant.log_scale.copy_(scale.float().log())
    quant.zero_point.copy_(zero_point)
    quant.set_extra_state(torch.tensor([True, True, 1]))
    if not torch.equal(quant.scale, scale):
        raise ArtifactError(f"{CHILD}: the scale {scale.item()} is none that is ever stored")
    return quant


def _construct(architecture: Mapping[str, Any], trust: Sequence[str]) -> nn.Module:
    own, *nested = targets(architecture)
    surgery.resolve_trusted(own, trust=trust)
    for path in nested:
        surgery.resolve_trusted(path, trust=trust, kind=PART)
    return construct(architecture["target"], architecture["kwargs"], seed=0)


@contextmanager
def _without_memory(paths: Sequence[str], stored: int, trust: Sequence[str]) -> Iterator[None]:
    """Inside, what compresskd constructs takes no memory, and may not be out of proportion."""
    if any(str(path).partition(".")[0] in trust for path in paths):
        yield
        return
    with torch.device("meta"), _WithoutDrawing(), _in_proportion(stored):
        yield


class _WithoutDrawing(TorchFunctionMode):
    """Inside, no parameter is filled at random, for values are to come.

    Without memory, where PyTorch would import its compiler to do so, no tensor is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWS and (args[0].is_meta or isinstance(args[0], nn.Parameter)):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _in_proportion(stored: int) -> Iterator[None]:
    """Refuse, inside, to register more modules than any network has, or parameters out of proportion to a file."""
    max_values = max(_ALWAYS_ALLOWED, _MAX_EXPANSION * stored)
    values, modules = 0, 0

    def count_values(_holder: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal values
        values += 0 if parameter is None else parameter.numel()
        if values > max_values:
            raise ArtifactError(
                f"an architecture of over {max_values:,} values ('{name}') is out of proportion"
            )

    def count_modules(_holder: nn.Module, _name: str, _module: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > _MAX_MODULES:
            raise ArtifactError(f"an architecture of over {_MAX_MODULES:,} modules is out of proportion")

    hooks = [
        registration.register_module_parameter_registration_hook(count_values),
        registration.register_module_module_registration_hook(count_modules),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""Everything that a model file says, as values: between a network and the forms in which it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.artifact.errors import ArtifactError
from compresskd.layers import surgery
from compresskd.models.build import spec_of
from compresskd.quant.activation import CHILD, ActivationQuant
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import convert, plain_state_dict
from compresskd.targets import paths

MAX_VALUES = 200_000  # of a header: tens of thousands of label names are
MAX_DEPTH = 32  # of nested values; what is deeper is no model of anybody's


@dataclass(frozen=True)
class Content:
    """A model as values. Nothing in it is executed, or looked up, before `build`.

    Attributes:
        architecture: {"target": dotted path, "kwargs": plain values}.
        modules: structure of every factorized module by name, as `surgery.structure` returns it.
        tensors: by name in the state of the network; tied names have the very same value, see `tied`. Quantized ones
            are read as their float32 values; float16 ones are vectors kept in half precision, and are read in the
            type that the constructor makes.
        activations: scale [1] float16 and zero point [1] int8 of 8-bit inputs, by the name of the layer.
        about: class_names, input_shape, mean, std, data, versions; empty for a checkpoint.
    """

    architecture: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor | QuantizedTensor]
    activations: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def content_of(model: nn.Module, about: Mapping[str, Any] | None = None, *, copy: bool = True) -> Content:
    """What is stored of a model; weights that are rounded as they are read become their integers.

    Args:
        model: that says how it was built.
        about: as in Content.
        copy: the tensors; else those that can be are the model's own, to be written at once.

    Raises:
        ValueError: the model does not say how it was built, or the range of an input was never observed.
    """
    stored: dict[int, Tensor | QuantizedTensor] = {}
    tensors: dict[str, Tensor | QuantizedTensor] = {}
    for name, value in (plain_state_dict(model) | convert(model)).items():
        if id(value) not in stored:
            stored[id(value)] = _on_cpu(value, copy)
        tensors[name] = stored[id(value)]
    return Content(
        spec_of(model), surgery.structure(model), tensors, dict(_activations(model)), dict(about or {})
    )


def tied(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Of names that have one and the same value, the later ones, each with the first."""
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(value), name) for name, value in tensors.items()}
    return {name: holder for name, holder in found.items() if holder != name}


def check(content: Content) -> None:
    """Raise ArtifactError where values are none that any model has: scales that are not positive and finite."""
    for name, value in content.tensors.items():
        if isinstance(value, QuantizedTensor):
            check_scale(name, value.scale)
            zero, grid = value.zero_point, value.grid
            if zero is not None and bool(((zero < grid.low) | (zero > grid.high)).any()):
                raise ArtifactError(
                    f"'{name}': expected zero points within {grid.low}..{grid.high}, got {zero.tolist()}"
                )
    for name, (scale, _) in content.activations.items():
        check_scale(f"{name}.{CHILD}", scale)


def check_finite(model: nn.Module) -> None:
    """Raise ArtifactError where a parameter is infinite or no number, or a buffer is no number.

    Buffers may be infinite: masks are.
    """
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ArtifactError(
                f"'{name}' holds NaN or infinite values: no model is stored, or loaded, with these"
            )
    for name, value in model.named_buffers():
        if bool(torch.isnan(value).any()):
            raise ArtifactError(f"'{name}' holds NaN values: no model is stored, or loaded, with these")


def check_scale(name: str, scale: Tensor) -> None:
    """Raise ArtifactError where a scale is zero, negative, infinite or no number."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        wrong = scale[~(torch.isfinite(scale) & (scale > 0))]
        raise ArtifactError(f"'{name}': expected scales above zero and finite, got {wrong[0].item()}")


def check_plain(value: Any, what: str, most: int = MAX_VALUES) -> None:
    """Raise ArtifactError where plain values are more, or nested deeper, than any model's, or are not plain."""
    level, count = [value], 0
    for _ in range(MAX_DEPTH + 1):
        count += len(level)
        if count > most:
            raise ArtifactError(f"{what}: over {most:,} values are out of proportion")
        level = [item for outer in level for item in _inner(outer, what)]
        if not level:
            return
    raise ArtifactError(f"{what}: values are nested deeper than {MAX_DEPTH}")


def _inner(value: Any, what: str) -> Sequence[Any]:
    """The values in a plain value."""
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise ArtifactError(f"{what}: expected names as keys, got {name!r:.80}")
        return list(value.values())
    if isinstance(value, list):
        return value
    if value is None or isinstance(value, str | bool | int | float):
        return ()
    raise ArtifactError(f"{what}: expected plain values, got {type(value).__name__}")


def targets(architecture: Mapping[str, Any]) -> list[str]:
    """Every dotted path that building an architecture `{"target": ..., "kwargs": ...}` would construct."""
    return [architecture.get("target", ""), *_nested_targets(architecture["kwargs"])]


def packages(model: nn.Module) -> list[str]:
    """The packages besides compresskd that `load` must be told to trust for this model."""
    named = [*targets(spec_of(model)), *(values["class"] for values in surgery.structure(model).values())]
    homes = [getattr(paths.resolve(path), "__module__", None) or path for path in named]
    return sorted({path.partition(".")[0] for path in (*named, *homes)} - {"compresskd"})


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over the names, types, shapes and values of all tensors of `model`."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _nested_targets(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [path for item in value for path in _nested_targets(item)]
    if isinstance(value, Mapping):
        own = [value["_target_"]] if "_target_" in value else []
        return own + [path for item in value.values() for path in _nested_targets(item)]
    return []


def _activations(model: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for name, layer in model.named_modules():
        quant = getattr(layer, CHILD, None)
        takes_indices = hasattr(layer, "num_embeddings")  # which pass as they are
        if not isinstance(quant, ActivationQuant) or not quant.enabled or takes_indices:
            continue
        if quant.num_passes == 0:
            raise ValueError(
                f"'{name}': the range of its input was never observed; run a few batches in training mode first, or "
                "call compresskd.quant.activation.calibrate"
            )
        yield name, (quant.scale.cpu().clone(), quant.zero_point.detach().cpu().clone())


def _on_cpu(value: Tensor | QuantizedTensor, copy: bool) -> Tensor | QuantizedTensor:
    if isinstance(value, Tensor):
        # contiguous: channels-last is no layout of safetensors; what it writes may share no memory
        plain = value.detach().cpu().contiguous()
        shares = plain.untyped_storage().nbytes() != plain.numel() * plain.itemsize
        return plain.clone() if copy or shares else plain
    zero_point = None if value.zero_point is None else value.zero_point.cpu()
    integers = value.integers.cpu().contiguous()
    return QuantizedTensor(integers, value.scale.cpu(), zero_point, value.grid, value.granularity)

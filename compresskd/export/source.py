"""The model that is exported: from a run directory, a folder of a model, or one compact file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compresskd import artifact
from compresskd.export.errors import ExportError
from compresskd.quant.activation import ActivationQuant
from compresskd.quant.pack import QuantizedTensor
from compresskd.run import RECORD, Record, read_record
from compresskd.targets.paths import Untrusted
from compresskd.trust import granted


@dataclass(frozen=True)
class Source:
    """A model in evaluation mode together with the integers of its quantized tensors.

    Attributes:
        path: where it was read.
        model: ordinary parameters, quantized ones as their values; inputs rounded by `ActivationQuant` children.
        quantized: integers by name of parameter or buffer.
        input_shape: of one sample; empty where samples differ in length.
        content: of the file that it was read from.
        record: of the run, where `path` is a run directory.
    """

    path: Path
    model: nn.Module
    quantized: Mapping[str, QuantizedTensor]
    input_shape: tuple[int, ...]
    content: artifact.Content
    record: Record | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        """What the file says of labels and data."""
        return self.content.about

    @property
    def rounds_inputs(self) -> bool:
        """Whether inputs of layers are rounded to 8 bits."""
        return any(isinstance(module, ActivationQuant) for module in self.model.modules())


def open_source(path: Path, *, trust: Sequence[str] = ()) -> Source:
    """Read the model at `path`: a finished run, a folder with model.safetensors, or a compact file.

    Raises:
        ExportError: there is no model, it is damaged, or it does not say what it takes.
        Untrusted: it names code outside of compresskd that nobody has said may run.
    """
    is_run = (path / RECORD).is_file()
    if not (is_run or path.is_file() or (path / "structure.json").exists()):
        raise ExportError(
            f"{path} holds no model: expected a run directory, a folder with model.safetensors and structure.json, "
            "or a .ckd file"
        )
    record = read_record(path) if is_run else None
    trust = trust if record is None else granted(path, record, trust)
    try:
        content = artifact.read(path, trust=trust)
        model = artifact.build(content, trust=trust)
    except Untrusted:  # which says by itself what to write
        raise
    except ValueError as error:
        raise ExportError(str(error)) from error
    quantized = {k: v for k, v in content.tensors.items() if isinstance(v, QuantizedTensor)}
    return Source(path, model, quantized, _input_shape(path, content, record), content, record)


def _input_shape(path: Path, content: artifact.Content, record: Record | None) -> tuple[int, ...]:
    """From what the file says of itself, the configuration, or the constructor's options."""
    offers: list[Any] = [content.about.get("input_shape"), content.architecture["kwargs"].get("input_shape")]
    if record is not None:
        offers.insert(1, record.config["data"].get("input_shape"))
    if content.about.get("preprocessing", {}).get("kind", "table") != "table":
        return ()  # texts have no one shape
    for shape in offers:
        if (
            isinstance(shape, list | tuple)
            and all(isinstance(n, int) and n > 0 for n in shape)
            and math.prod(shape)
        ):
            return tuple(shape)
    raise ExportError(
        f"{path} does not say which inputs it takes; export the run directory or its model/ folder instead"
    )

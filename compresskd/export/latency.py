"""How fast an exported model is beside its source and the dense float network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from compresskd import measure
from compresskd.export import dense, onnx
from compresskd.export.agreement import BATCH_SIZES, Run, run_of
from compresskd.export.errors import ExportError
from compresskd.export.source import Source
from compresskd.layers import surgery
from compresskd.tasks import Inputs, map_inputs


class _Contender(nn.Module):
    """Whatever maps inputs to outputs, as a module that holds nothing."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = (run,)  # not by itself: an exported module knows neither train() nor eval()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Inputs, positional or by name, to outputs."""
        return self._run[0](kwargs or args[0])


def latency(
    source: Source, form: str, runs: Mapping[str, Run], sample: Inputs
) -> dict[str, dict[str, float]]:
    """Median milliseconds of all contenders, timed in turn, for batches of one `sample`."""
    contenders: dict[str, Run] = {**runs, "the model": run_of(source.model)}
    with tempfile.TemporaryDirectory() as folder:
        contenders |= _dense_float(source, form, sample, Path(folder) / "dense.onnx")
        modules = {name: _Contender(run) for name, run in contenders.items()}
        return measure.latency(modules, sample, batch_sizes=BATCH_SIZES)


def _dense_float(source: Source, form: str, sample: Inputs, path: Path) -> dict[str, Run]:
    """The network without compression in torch and, for ONNX, there too; what would be the same is left out."""
    factorized = bool(surgery.structure(source.model))
    try:
        plain = dense.fold(source.model, float_inputs=True)
    except ExportError:  # an architecture that has no dense form
        return {}
    found: dict[str, Run] = {}
    if form != "dense" and (factorized or source.rounds_inputs):
        found["dense float"] = run_of(plain)
    if form == "onnx" and (factorized or source.quantized):
        onnx.write(plain, {}, map_inputs(lambda x: x.repeat_interleave(2, dim=0), sample), path)
        found["dense float, ONNX"] = onnx.read(path)
    return found

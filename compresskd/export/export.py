"""One export: written, read again, compared with the model on samples, timed, and only then put in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from compresskd import artifact
from compresskd.export import dense, huggingface, onnx, pt2
from compresskd.export.agreement import BATCH_SIZES, Agreement, Run, check, compare, run_of, worst
from compresskd.export.errors import ExportError
from compresskd.export.latency import latency
from compresskd.export.samples import Samples
from compresskd.export.source import Source
from compresskd.run import atomic, atomic_folder, remove_leftovers_of, write_text
from compresskd.tasks import Inputs, map_inputs, sliced
from compresskd.version import __version__

FOLDERS = ("dense", "huggingface")  # forms that are folders


@dataclass(frozen=True)
class Written:
    """A form on disk.

    Attributes:
        runs: the ways to run it, by a name for tables; the last one is the fastest.
        integers: ONNX type of each quantized tensor by name.
        session_options: configuration entries of onnxruntime for the fastest one.
    """

    runs: Mapping[str, Run]
    integers: Mapping[str, str] = field(default_factory=dict)
    session_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written where, and how it compares with its source.

    `latency_ms` holds milliseconds by contender and batch size, on as many threads as torch uses.
    """

    form: str
    path: Path
    num_bytes: int
    written: Written
    agreement: Agreement
    samples: Samples
    latency_ms: Mapping[str, Mapping[str, float]]


def export(source: Source, form: str, out: Path, samples: Samples, *, timed: bool = True) -> Exported:
    """Write the model in one of FORMS to `out`, with a report beside it (`report_of`).

    Args:
        source: the model.
        form: one of FORMS.
        out: file or, of a dense model, folder; replaced where it is there; what a killed export left is removed.
        samples: on which outputs are compared.
        timed: measure latency, too; that of ONNX takes another export, of the dense float network.

    Raises:
        ExportError: an unknown form, or a package that it needs is missing.
        ExportFailed: the outputs are not those of the source; then nothing is left at `out`.
    """
    if form not in FORMS:
        raise ExportError(f"--to: got {form}, expected one of {', '.join(FORMS)}")
    if form == "onnx":
        onnx.require_packages()
    for path in (out, report_of(out)):
        remove_leftovers_of(path)
    place = atomic_folder if form in FOLDERS else atomic
    with place(out) as temporary:
        written = FORMS[form](source, samples.inputs, temporary)
        found = [compare(run_of(source.model), run, samples.inputs) for run in written.runs.values()]
        agreement = worst(found)
        check(agreement, samples, rounds_inputs=source.rounds_inputs)
        times = latency(source, form, written.runs, sliced(samples.inputs, 0, 1)) if timed else {}
        exported = Exported(form, out, _num_bytes(temporary), written, agreement, samples, times)
        # first the report: an export that is there without it would be taken for somebody else's file
        write_text(report_of(out), json.dumps(_plain(source, exported), indent=1) + "\n")
    return exported


def report_of(out: Path) -> Path:
    """The JSON file beside an export that says how it compares with its source."""
    return out.with_name(f"{out.name}.export.json")


def is_export(out: Path) -> bool:
    """Whether the report beside `out` says that an export wrote it."""
    try:
        report = json.loads(report_of(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("form") in FORMS


def _write_onnx(source: Source, inputs: Inputs, path: Path) -> Written:
    integers = onnx.write(source.model, source.quantized, example(inputs), path)
    runs = {"ONNX": onnx.read(path)}
    # integers that no integer kernel takes are better unpacked once than at every call
    options = onnx.UNPACK_AT_LOAD if integers and not source.rounds_inputs else {}
    if options:
        runs["ONNX, integers unpacked at load"] = onnx.read(path, options=options)
    return Written(runs, integers, options)


def _write_pt2(source: Source, inputs: Inputs, path: Path) -> Written:
    pt2.write(source.model, example(inputs), path)
    return Written({"torch.export": pt2.read(path)})


def _write_dense(source: Source, inputs: Inputs, path: Path) -> Written:
    model = dense.fold(source.model)
    dense.write(model, source.about, path)
    return Written({"dense": run_of(artifact.load(path, trust=artifact.packages(model)))})


def _write_huggingface(source: Source, inputs: Inputs, path: Path) -> Written:
    huggingface.check(source.model)
    plain = dense.fold(source.model, float_inputs=True)
    trust = artifact.packages(source.model)
    return Written({"transformers": huggingface.write(source, plain, path, trust=trust)})


FORMS: Mapping[str, Callable[[Source, Inputs, Path], Written]] = {
    "onnx": _write_onnx,
    "pt2": _write_pt2,
    "dense": _write_dense,
    "huggingface": _write_huggingface,
}


def example(inputs: Inputs) -> Inputs:
    """Two inputs to trace with: one alone would be taken for a size that never changes."""
    return map_inputs(lambda tensor: tensor[:1].repeat_interleave(2, dim=0), inputs)


def _num_bytes(path: Path) -> int:
    return artifact.folder_bytes(path) if path.is_dir() else path.stat().st_size


def _plain(source: Source, exported: Exported) -> dict[str, object]:
    return {
        "form": exported.form,
        "source": str(source.path),
        "bytes": exported.num_bytes,
        "samples": exported.samples.kind,
        "batch_sizes": list(BATCH_SIZES),
        **asdict(exported.agreement),
        "integers": dict(exported.written.integers),
        "session_options": dict(exported.written.session_options),
        "latency_ms": exported.latency_ms,
        "num_threads": torch.get_num_threads(),
        "versions": {"compresskd": __version__, "torch": torch.__version__},
    }

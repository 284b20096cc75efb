"""The verb: which model, in which form, where to, and what a person is told."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compresskd.export.agreement import BATCH_SIZES
from compresskd.export.errors import ExportError, ExportFailed
from compresskd.export.export import FOLDERS, Exported, export, is_export, report_of
from compresskd.export.samples import Samples, drawn_from, random
from compresskd.export.source import Source, open_source
from compresskd.trust import granted, trusted_packages

_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "dense": "-dense", "huggingface": "-huggingface"}


def run(arguments: argparse.Namespace) -> int:
    """`compresskd export DIR --to onnx|pt2|dense`; the exit code: 0, or 1 where the export answers otherwise."""
    path: Path = arguments.directory
    trust = trusted_packages(arguments.trust)
    source = open_source(path, trust=trust)
    out = arguments.out or _default_out(source, arguments.to)
    _check_out(out, arguments.to, overwrite=arguments.overwrite)
    samples = _samples(source, arguments.check_samples, trust)
    console = Console(highlight=False, soft_wrap=True)
    try:
        exported = export(source, arguments.to, out, samples)
    except ExportFailed as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"compresskd: {error}", markup=False)
        return 1
    console.print(_summary(exported), markup=False)
    console.print(_table(exported))
    return 0


def _default_out(source: Source, form: str) -> Path:
    """In a run's folder `export/model.onnx` and the like, else beside the model and named after it."""
    suffix = _SUFFIXES[form]
    if source.record is not None:
        folder = source.path / "export"
        if folder.is_symlink():
            raise ExportError(
                f"{folder} is a link out of the run directory; remove it, or write another --out"
            )
        return folder / f"model{suffix}"
    path = source.path.resolve()
    return path.with_name(f"{path.stem if path.is_file() else path.name}{suffix}")


def _check_out(out: Path, form: str, *, overwrite: bool) -> None:
    """Raise ExportError where something is at `out` or at its report's place that may not be replaced."""
    there, report = os.path.lexists(out), os.path.lexists(report_of(out))
    if not there and (not report or is_export(out)):  # a report alone is what a killed export left
        return
    if not overwrite and there:
        raise ExportError(f"{out} is there already; write another --out, or --overwrite to replace it")
    if out.exists() and out.is_dir() != (form in FOLDERS):
        raise ExportError(
            f"{out} is a {'folder' if out.is_dir() else 'file'}, which this form does not replace"
        )
    empty = out.is_dir() and not any(out.iterdir())
    if not (empty or is_export(out)):
        raise ExportError(
            f"{out if there else report_of(out)} was written by something else than an export, which is never "
            "replaced; write another --out"
        )


def _samples(source: Source, count: int, trust: Sequence[str]) -> Samples:
    """Of the run's own test split where there is a run, else random ones."""
    if source.record is None and not source.input_shape:
        raise ExportError(
            f"{source.path} is a model of texts, which are at hand in its run alone; export the run's directory"
        )
    if source.record is None:
        return random(source.input_shape, count)
    from compresskd.config.recorded import data_of

    data = data_of(source.record.config, trust=granted(source.path, source.record, trust))
    return drawn_from(data.test, count, data.name)


def _summary(exported: Exported) -> str:
    agreement = exported.agreement
    lines = [
        f"wrote {exported.path} ({exported.num_bytes:,} bytes) and {report_of(exported.path).name}",
        f"compared on {exported.samples.kind}, in batches of {' and '.join(map(str, BATCH_SIZES))}: largest "
        f"difference {agreement.largest_difference:.2g} (outputs up to {agreement.largest_output:.3g}), equal "
        f"predictions {100 * agreement.equal_predictions:.2f}%",
    ]
    types = list(exported.written.integers.values())
    if types:
        counts = ", ".join(f"{types.count(kind)} {kind}" for kind in sorted(set(types)))
        lines.append(f"quantized tensors: {counts}; no float copy among the initializers")
    for key, value in exported.written.session_options.items():
        lines.append(
            f"to unpack the integers at load: SessionOptions.add_session_config_entry('{key}', '{value}')"
        )
    return "\n".join(lines)


def _table(exported: Exported) -> Table:
    table = Table(title="forward, milliseconds")
    table.add_column("")
    for size in BATCH_SIZES:
        table.add_column(f"batch {size}", justify="right")
    for name, times in exported.latency_ms.items():
        table.add_row(name, *(f"{times[f'batch_{size}']:.3f}" for size in BATCH_SIZES))
    return table

"""Packed outputs of a teacher in files, mapped into memory: written once, read back by the position of a sample.

An entry is a folder of arrays, one row for each row of the task, and `offsets.npy`, at which row each sample begins.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from torch import Tensor

from compresskd.tasks import TopOutputs

_LEVELS = 255


@dataclass(frozen=True)
class Stored:
    """An entry, open.

    Attributes:
        arrays: `index` [R, k]; `values` [R, k], in 8 bits steps below the largest; `rest` [R, temperatures]; in 8 bits
            also `scale` [R, 2], the largest value and the step.
        offsets: [S + 1] int64.
        temperatures: of the columns of `rest`.
    """

    arrays: dict[str, np.ndarray]
    offsets: Tensor
    temperatures: tuple[float, ...]

    def of(self, positions: Tensor) -> TopOutputs:
        """The rows of the samples at these positions, one sample after the other, on their device."""
        starts, ends = self.offsets[positions.cpu()], self.offsets[positions.cpu() + 1]
        rows = torch.cat([torch.arange(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
        part = {
            name: torch.from_numpy(array[rows.numpy()].astype(np.int64 if name == "index" else np.float32))
            for name, array in self.arrays.items()
        }
        values = part["values"]
        if "scale" in part:
            values = part["scale"][:, :1] - values * part["scale"][:, 1:]
        rest = dict(zip(self.temperatures, part["rest"].unbind(1), strict=True))
        return TopOutputs(values, part["index"], rest).to(positions.device)


def stored(
    folder: Path, rows: Iterable[tuple[TopOutputs, Tensor]], temperatures: tuple[float, ...], *, bits: int
) -> Stored:
    """What is in a folder, or is written into it now; another process that writes it is waited for.

    Args:
        rows: of batches in the order of the split, with the number of rows of each sample; asked for only to write.
        bits: of each value: 8, 16 or 32.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            growing = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(growing, ignore_errors=True)  # the lock is held: a killed process left it
            growing.mkdir()
            _write(growing, rows, bits)
            growing.rename(folder)
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    return Stored(arrays, torch.from_numpy(np.array(arrays.pop("offsets"))), temperatures)


def _write(folder: Path, rows: Iterable[tuple[TopOutputs, Tensor]], bits: int) -> None:
    """Each array grows as raw bytes, and is given its shape at the end."""
    files, shapes = {}, {}
    counts = []
    try:
        for top, count in rows:
            counts.append(count.cpu())
            for name, array in _arrays(top, bits).items():
                if name not in files:
                    files[name] = (folder / f"{name}.raw").open("wb")
                files[name].write(np.ascontiguousarray(array).data)
                shapes[name] = (array.dtype, array.shape[1:])
    finally:
        for file in files.values():
            file.close()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    np.save(folder / "offsets.npy", offsets.numpy())
    for name, (dtype, shape) in shapes.items():
        raw = np.memmap(folder / f"{name}.raw", dtype, "r").reshape(-1, *shape)
        open_memmap(folder / f"{name}.npy", "w+", dtype, raw.shape)[:] = raw
        (folder / f"{name}.raw").unlink()


def _arrays(top: TopOutputs, bits: int) -> dict[str, np.ndarray]:
    index = top.index.cpu().numpy()
    found = {
        "index": index.astype(np.int32),
        "rest": torch.stack(list(top.rest.values()), dim=1).cpu().numpy(),
    }
    values = top.values.cpu().numpy()
    if bits != 8:
        return {**found, "values": values.astype(np.float16 if bits == 16 else np.float32)}
    largest = values[:, :1]
    step = np.maximum((largest - values[:, -1:]) / _LEVELS, 1e-12)
    steps = np.rint((largest - values) / step).astype(np.uint8)
    return {**found, "values": steps, "scale": np.concatenate([largest, step], axis=1)}

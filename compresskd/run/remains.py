"""What an unfinished run left, judged before anything goes on from it."""

from __future__ import annotations

from pathlib import Path

from compresskd.run.errors import RunDirectoryError
from compresskd.run.fingerprints import changes
from compresskd.run.metrics import read_metrics
from compresskd.run.ownership import METRICS, PREDICTIONS
from compresskd.run.record import Record


def check_remains(directory: Path, record: Record) -> None:
    """See that the files of an unfinished run can be read, and that its finished stages are as they were recorded.

    Raises:
        RunDirectoryError: naming the first file that is damaged, missing or another than the run wrote.
    """
    from compresskd.run.predictions import read_predictions  # numpy, which most readers of records do without

    for name, read in ((METRICS, read_metrics), (PREDICTIONS, read_predictions)):
        if (directory / name).exists():
            read(directory / name)
    for stage in record.stages:
        for change in changes(directory, stage.get("files", {})):
            raise RunDirectoryError(
                f"{change}; stage '{stage['name']}' cannot be resumed from: put the file back, or start the run again "
                "in another folder"
            )

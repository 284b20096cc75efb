"""`compresskd track`: runs that have been made, sent to trackers by the adapters of those that follow a run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from compresskd.cli.endings import FAILURE, complain
from compresskd.compare.discovery import find_records
from compresskd.config.tracking import trackers_of
from compresskd.listeners.tracked import follow_afterwards
from compresskd.listeners.tracker import Tracker
from compresskd.run import FINISHED, InUse, RunDirectoryError, open_run, read_record


def run(arguments: Namespace) -> int:
    """Send each run below the folders; the exit code is 1 where one of them could not be read or sent.

    Raises:
        ConfigError: of the trackers; nothing has been sent.
        RunDirectoryError: there is no run.
    """
    folders = [Path(word) for word in arguments.words if "=" not in word]
    paths, problems = find_records(folders)
    if not paths:
        reasons = "; ".join(f"{problem.path} {problem.reason}" for problem in problems)
        raise RunDirectoryError(f"track: no run is there ({reasons or 'no DIR was given'})")
    directories = [path.parent for path in paths]
    options = [word for word in arguments.words if "=" in word]
    outputs = _outputs(directories)
    trackers = trackers_of(arguments.to.split(","), options, outputs, arguments.config_dir)
    for problem in problems:
        complain(f"{problem.path}: {problem.reason}")
    sent = [_send(directory, trackers, outputs) for directory in directories]
    print(f"{sum(sent)} of {len(sent)} runs are in {', '.join(trackers)}")
    return 0 if all(sent) and not problems else FAILURE


def _outputs(directories: list[Path]) -> Path:
    """The folder of all outputs: what the first record says where that is still there, else above the run."""
    folder = directories[0].absolute()
    try:
        recorded = Path(read_record(folder).config["outputs_dir"])
    except (RunDirectoryError, KeyError, TypeError):
        return folder.parent
    return recorded if recorded.is_dir() else folder.parent


def _send(directory: Path, trackers: dict[str, Tracker], outputs: Path) -> bool:
    """Whether it went well; a run that goes on, or whose record is damaged, is told."""
    held = None
    try:
        record = read_record(directory)
        if record.status != FINISHED:
            held = open_run(directory)  # nobody goes on with it meanwhile
        return follow_afterwards(directory.absolute(), record, trackers, outputs, complain)
    except InUse:
        complain(f"{directory}: skipped: it is going on; add tracker=NAME to the command to follow it")
    except RunDirectoryError as error:
        complain(str(error))
    finally:
        if held is not None:
            held.close()
    return False

"""What can be wrong with a run directory."""


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked: it is taken, finished, damaged or not writable."""


class InUse(RunDirectoryError):
    """Another process is writing in the directory."""


class AlreadyFinished(RunDirectoryError):
    """The directory holds a finished run."""

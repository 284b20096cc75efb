"""What can be wrong with a run directory."""


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked: it is taken, finished, damaged, foreign or not writable."""


class InUse(RunDirectoryError):
    """Another process is writing in the directory."""


class AlreadyFinished(RunDirectoryError):
    """The directory holds a finished run."""


class Foreign(RunDirectoryError):
    """The directory holds files, and they are no run's; nothing in it has been touched."""


class Lost(RuntimeError):
    """The directory was removed, or taken over by another process, while this process worked in it."""

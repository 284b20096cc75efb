"""What can go wrong with an export."""

from compresskd.run import RunDirectoryError


class ExportError(RunDirectoryError):
    """What was asked for cannot be exported: no model there, a damaged one, a missing package, a name that is taken."""


class ExportFailed(RuntimeError):
    """The exported model does not answer as the model does; nothing of it is kept."""

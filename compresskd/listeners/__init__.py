"""Who follows a run: the console."""

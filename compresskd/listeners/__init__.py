"""Who follows a run: the console, and trackers."""

"""A CSV file of every curve."""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curves:
    file: str = "curves.csv"
    max_model_bytes: int = 0  # how large a model file `finish` takes

    def check(self, outputs):
        """Raise a ValueError where the tracker cannot be used; nothing is written yet."""

    def open(self, job):
        return Curve(job.directory / self.file)


class Curve:
    def __init__(self, path: Path):
        self.path, self.identity = path, path.name  # by which a resumed run is found again

    def steps(self, name):
        """The steps of a name that are there already."""
        rows = csv.reader(self.path.open(newline="")) if self.path.exists() else ()
        return {int(step) for step, found, _ in rows if found == name}

    def log(self, values, step):
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((step, name, value) for name, value in values.items())

    def finish(self, status, table, files):
        """The run has ended: finished, failed or interrupted."""

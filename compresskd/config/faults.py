"""Faults of a configuration: found all together, each with its key, what came, what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        key: of the configuration, dotted.
        text: what came, what is expected, what to write instead.
        job: the overrides of the job of a sweep that it is in; empty where it is in all of them.
    """

    key: str
    text: str
    job: str = ""

    def __str__(self) -> str:
        said = f"{self.key}: {self.text}" if self.key else self.text
        return f"{said} (job {self.job})" if self.job else said


class ConfigError(ValueError):
    """A configuration with faults; nothing has been trained or written."""

    def __init__(self, faults: Sequence[Fault]):
        self.faults = list(dict.fromkeys(faults))
        count = len(self.faults)
        head = f"{count} fault{'s' if count > 1 else ''}; nothing was run:"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in self.faults)]))


def of_jobs(faults: Sequence[Sequence[Fault]], names: Sequence[str]) -> list[Fault]:
    """Faults of all jobs of a sweep, each with the job that it is in, or with none where every job has it."""
    jobs_with: dict[Fault, list[str]] = {}
    for name, found in zip(names, faults, strict=True):
        for fault in dict.fromkeys(found):
            jobs_with.setdefault(fault, []).append(name)
    more = {fault: f" and {len(jobs) - 1} more" if jobs[1:] else "" for fault, jobs in jobs_with.items()}
    return [
        fault if len(jobs) == len(names) else replace(fault, job=f"{jobs[0]}{more[fault]}")
        for fault, jobs in jobs_with.items()
    ]


def said(error: BaseException) -> str:
    """What an error of Hydra says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    asides = ("full_key:", "object_type=", "reference_type=")
    return " ".join(line for line in lines if line and not line.startswith(asides))

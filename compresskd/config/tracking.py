"""Trackers by name and options, outside of the configuration of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compresskd.config.build import resolved
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.parts import Parts


def trackers_of(
    names: Sequence[str], options: Sequence[str], outputs: Path, config_dirs: Sequence[Path]
) -> dict[str, Any]:
    """Trackers that can be used, by name.

    Args:
        names: of the group `tracker`.
        options: `tracker.NAME.KEY=VALUE`.
        outputs: the folder of all outputs, where stores are kept that have no other place.
        config_dirs: searched besides the shipped configuration.

    Raises:
        ConfigError: an unknown name or option, a package that is missing, a store that cannot be used.
    """
    other = "is no option of a tracker; track takes tracker.NAME.KEY=VALUE only"
    faults = [Fault(line, other) for line in options if not line.startswith("tracker.")]
    (job,) = compose_jobs([f"tracker=[{','.join(names)}]", *options], config_dirs=config_dirs).jobs
    if faults or job.faults:
        raise ConfigError([*faults, *job.faults])
    parts = Parts({**resolved(job.config), "outputs_dir": str(outputs)})
    parts.check_group("tracker")
    trackers = parts.trackers() if not parts.errors else {}
    parts.stop_at_faults()
    return trackers

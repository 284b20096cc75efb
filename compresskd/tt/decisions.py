"""Choices that were measured once on this machine and hold for later runs, so that these compute alike."""

import hashlib
import json
from collections.abc import Callable

from compresskd.tt.calibration import cache_directory, create_once

_made: dict[tuple[str, str], bool] = {}


def decide(topic: str, name: str, measure: Callable[[], bool]) -> bool:
    """The remembered outcome for `name`, from the process or from disk; measured where there is none."""
    if (topic, name) not in _made:
        digest = hashlib.sha256(name.encode()).hexdigest()[:20]
        path = cache_directory() / topic / f"{digest}.json"
        try:
            outcome = bool(json.loads(path.read_text())["outcome"])
        except (OSError, ValueError, KeyError, TypeError):
            outcome = measure()
            create_once(path, json.dumps({"name": name, "outcome": outcome}))
        _made[topic, name] = outcome
    return _made[topic, name]

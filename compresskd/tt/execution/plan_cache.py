"""Choices that were measured once on this machine and hold for later runs, so that these compute alike."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from compresskd.tt.execution.machine import cache_directory, create_once

_made: dict[tuple[str, str], Any] = {}


def decide(topic: str, name: str, measure: Callable[[], Any], otherwise: Any) -> Any:
    """The remembered outcome for `name` (plain values), from the process or from disk; measured where there is none.

    A new outcome is written before it is used; whoever wrote first wins, so that jobs started together compute
    alike. Where nothing can be written the answer is `otherwise`, which later processes reach as well.
    """
    if (topic, name) not in _made:
        digest = hashlib.sha256(name.encode()).hexdigest()[:20]
        path = cache_directory() / topic / f"{digest}.json"
        outcome = _read(path, name)
        if outcome is None:
            create_once(path, json.dumps({"name": name, "outcome": measure()}))
            outcome = _read(path, name)
        _made[topic, name] = otherwise if outcome is None else outcome
    return _made[topic, name]


def _read(path: Any, name: str) -> Any:
    try:
        stored = json.loads(path.read_text())
        return stored["outcome"] if stored["name"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

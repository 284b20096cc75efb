"""What a record may ask for: its experiment, or its data, or other data in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from compresskd.config.allowed import outside_targets
from compresskd.config.build import build, resolved
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import NOTHING, leaves
from compresskd.config.parts import Parts
from compresskd.config.schema import GROUPS
from compresskd.data.base import Data
from compresskd.engine.experiment import Experiment
from compresskd.options import shown
from compresskd.run import RECORD, RunDirectoryError
from compresskd.targets.paths import Untrusted, check_trusted
from compresskd.targets.stored_names import with_stored_targets


def build_recorded(
    config: Mapping[str, Any], overrides: Sequence[str] = (), *, trust: Sequence[str] = ()
) -> Experiment:
    """The experiment of a record.

    Args:
        config: that of the record.
        overrides: what was typed when the run was begun.
        trust: packages besides compresskd whose code may run.

    Raises:
        ConfigError: with every fault, such as data that is no longer there, or code that may not run.
    """
    _check(config, trust)
    parts = Parts(resolved(OmegaConf.create(dict(config))), trust=trust)
    return build(parts, overrides, trust=trust)


def data_of(
    config: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust: Sequence[str] = (),
    config_dirs: Sequence[Path] = (),
) -> Data:
    """Load the data of a resolved configuration.

    Args:
        config: that of the record.
        overrides: `data=NAME` chooses another set, `data.KEY=VALUE` changes one option of the set; what they name
            is the user's own word, and may run.
        trust: packages besides compresskd whose code may run for what the record names.
        config_dirs: searched for NAME besides the shipped configuration.

    Raises:
        ConfigError: for an override that is not about data, data that cannot be loaded, or code that may not run.
    """
    other = "is not about the data; evaluate takes data=NAME and data.KEY=VALUE only"
    faults = [Fault(line, other) for line in overrides if not line.startswith(("data=", "data."))]
    if any(line.startswith("data=") for line in overrides):
        (job,) = compose_jobs(overrides, config_dirs=config_dirs).jobs
        faults, changed = [*faults, *job.faults], job.config
    else:
        _check({"data": config.get("data"), "task": config.get("task") or {}}, trust)
        changed: Any = OmegaConf.merge({"data": config["data"]}, OmegaConf.from_dotlist(list(overrides)))
    if faults:
        raise ConfigError(faults)
    named = resolved(changed)["data"]
    said = [path.partition(".")[0] for _, path in outside_targets(named)] if overrides else []
    parts = Parts({"data": named, "task": config.get("task")}, trust=(*trust, *said))
    parts.check_group("data")
    data = parts.data(parts.task())
    parts.stop_at_faults()
    assert data is not None
    return data


def differences(one: Any, other: Any) -> list[str]:
    """'key: value, now other value' for each leaf in which two plain configurations differ.

    A key that one of them lacks and that is off (null or false) in the other came with a later version.
    """
    then, now = dict(leaves(with_stored_targets(one))), dict(leaves(with_stored_targets(other)))
    pairs = {key: (then.get(key, NOTHING), now.get(key, NOTHING)) for key in sorted({*then, *now})}
    return [
        f"{key}: {then.get(key)!r}, now {now.get(key)!r}"
        for key, (a, b) in pairs.items()
        if a != b and not (NOTHING in (a, b) and any(value is None or value is False for value in (a, b)))
    ]


@contextmanager
def usable(directory: Path) -> Iterator[None]:
    """Inside, only what a record says is read and built: whatever goes wrong there is the record's fault."""
    try:
        yield
    except (ConfigError, RunDirectoryError, Untrusted):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        raise RunDirectoryError(f"{directory / RECORD}: its configuration cannot be used ({said})") from error


def _check(config: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Judge a recorded configuration before anything is made of it, imported or interpolated.

    Raises:
        ConfigError: with every `_target_` outside of compresskd and `trust`, and every `${...}` (a configuration is
            recorded with its values), and every group that is none.
    """
    faults = [
        Fault(name, f"got {shown(value)}, expected a mapping of options")
        for name, value in config.items()
        if name in GROUPS and not isinstance(value, Mapping)
    ]
    faults += [
        Fault(key, f"got {shown(value)}; a record holds no ${{...}}")
        for key, value in leaves(config)
        if "${" in key or "${" in str(value)
    ]
    for key, path in outside_targets(config):
        try:
            check_trusted(path, trust=trust)
        except Untrusted as error:
            faults.append(Fault(key, str(error)))
    if faults:
        raise ConfigError(faults)

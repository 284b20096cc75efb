"""Hydra's flags, read ahead of Hydra."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compresskd.config.faults import ConfigError, Fault
from compresskd.options import close_match

OURS = ("--verbose", "--version")
_SHOWN = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
_SWITCH: dict[str, Any] = {"action": "store_true"}
_FLAGS: dict[tuple[str, ...], dict[str, Any]] = {
    **dict.fromkeys(
        (("--help", "-h"), ("--hydra-help",), ("--version",), ("--resolve",), ("--run", "-r")), _SWITCH
    ),
    **dict.fromkeys((("--multirun", "-m"), ("--shell-completion", "-sc")), _SWITCH),
    ("--cfg", "-c"): {"choices": ["job", "hydra", "all"]},
    ("--info", "-i"): {"nargs": "?", "const": "all", "choices": _SHOWN},
    **{names: {} for names in (("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"))},
    **{names: {} for names in (("--config-dir", "-cd"), ("--experimental-rerun",))},
}


@dataclass(frozen=True)
class Flags:
    """What a command line asks for.

    Attributes:
        overrides: as typed.
        others: the flags with their values, as typed.
        multirun: whether `a=1,2` stands for two jobs.
        informs: Hydra is to show something instead of running.
        shows_config: what it shows depends on the overrides.
        config_dirs: searched besides the shipped configuration.
        config_path, config_name: of another primary configuration than the shipped one.
    """

    overrides: list[str]
    others: list[str]
    multirun: bool
    informs: bool
    shows_config: bool
    config_dirs: list[Path]
    config_path: str | None
    config_name: str | None

    @property
    def searched(self) -> list[Path]:
        """Every folder that is searched besides the shipped configuration, also those of `hydra.searchpath=[...]`."""
        named = [
            Path(part.removeprefix("file://"))
            for part in _search_path(self.overrides)
            if "pkg://" not in part
        ]
        return [*self.config_dirs, *named]

    @property
    def arguments(self) -> list[str]:
        """In an order that Hydra reads: it takes no override after a flag that follows another override."""
        return [*self.overrides, *self.others]


def read_flags(arguments: Sequence[str]) -> Flags:
    """Read a command line.

    Raises:
        ConfigError: for a flag that does not exist, or lacks its value; for a search path that names no folder.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.error = _refuse
    parser.add_argument("overrides", nargs="*")
    for names, options in _FLAGS.items():
        parser.add_argument(*names, **options)
    values, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        # argparse also calls unknown what merely stands after an unknown flag
        raise ConfigError([_unknown(flag) for flag in unknown if flag.startswith("-")])
    overrides, others = list(values.overrides), list(arguments)
    for override in overrides:
        others.remove(override)
    faults = [
        Fault(
            "hydra.searchpath", f"got {entry}, expected a folder that is there, file://FOLDER, pkg://PACKAGE"
        )
        for entry in _search_path(overrides)
        if not entry.startswith("pkg://") and not Path(entry.removeprefix("file://")).is_dir()
    ]
    if faults:
        raise ConfigError(faults)
    shows_config = bool(values.cfg or values.info)
    return Flags(
        overrides,
        others,
        values.multirun or "hydra.mode=MULTIRUN" in overrides,
        shows_config or values.help or values.hydra_help or values.shell_completion,
        shows_config,
        [Path(values.config_dir)] if values.config_dir else [],
        values.config_path,
        values.config_name,
    )


def _search_path(overrides: Sequence[str]) -> list[str]:
    """The entries of `hydra.searchpath=[...]`, as typed."""
    typed = [line.partition("=")[2] for line in overrides if line.startswith("hydra.searchpath=")]
    named = [part.strip("'\" ") for line in typed for part in line.strip("[]").split(",")]
    return [part for part in named if part]


def _refuse(message: str) -> NoReturn:
    raise ConfigError([Fault("", f"{message}; see --hydra-help")])


def _unknown(flag: str) -> Fault:
    near = close_match(flag, [*(names[0] for names in _FLAGS), *OURS])
    return Fault(flag, f"unknown flag; {f'did you mean {near}?' if near else 'see --help and --hydra-help'}")

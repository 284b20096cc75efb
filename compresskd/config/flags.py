"""Hydra's flags, read ahead of Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from compresskd.config.faults import ConfigError, Fault, close_match

OURS = ("--verbose", "--version")


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
        named = search_path(self.overrides)
        return [
            *self.config_dirs,
            *(Path(part.removeprefix("file://")) for part in named if "pkg://" not in part),
        ]

    @property
    def arguments(self) -> list[str]:
        """In an order that Hydra reads: it takes no override after a flag that follows another override."""
        return [*self.overrides, *self.others]


def search_path(overrides: Sequence[str]) -> list[str]:
    """The entries of `hydra.searchpath=[...]`, as typed."""
    typed = [line.partition("=")[2] for line in overrides if line.startswith("hydra.searchpath=")]
    named = [part.strip("'\" ") for line in typed for part in line.strip("[]").split(",")]
    return [part for part in named if part]


def read_flags(arguments: Sequence[str]) -> Flags:
    """Read a command line.

    Raises:
        ConfigError: for a flag that does not exist, or lacks its value.
    """
    parser = get_args_parser()
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    parser.error = _refuse
    values, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        # argparse also calls unknown what merely stands after an unknown flag
        raise ConfigError([_unknown(flag, [*known, *OURS]) for flag in unknown if flag.startswith("-")])
    overrides, others = list(values.overrides), list(arguments)
    for override in overrides:
        others.remove(override)
    _check_search_path(overrides)
    shows_config = bool(values.cfg or values.info)
    return Flags(
        overrides,
        others,
        values.multirun or "hydra.mode=MULTIRUN" in overrides,
        shows_config or bool(values.help or values.hydra_help or values.shell_completion),
        shows_config,
        [Path(values.config_dir)] if values.config_dir else [],
        values.config_path,
        values.config_name,
    )


def _check_search_path(overrides: Sequence[str]) -> None:
    """Raise ConfigError where `hydra.searchpath=[...]` names what is no folder."""
    faults = []
    for entry in search_path(overrides):
        scheme, there, _ = entry.rpartition("://")
        if there and scheme not in ("file", "pkg"):
            faults.append(
                Fault("hydra.searchpath", f"came {entry}; allowed: a folder, file://FOLDER, pkg://PACKAGE")
            )
        elif scheme != "pkg" and not Path(entry.removeprefix("file://")).is_dir():
            faults.append(Fault("hydra.searchpath", f"came {entry}, which is no folder; write file://FOLDER"))
    if faults:
        raise ConfigError(faults)


def _refuse(message: str) -> NoReturn:
    raise ConfigError([Fault("", f"{message}; see --hydra-help")])


def _unknown(flag: str, known: Sequence[str]) -> Fault:
    near = close_match(flag, known)
    return Fault(
        flag, "unknown flag" + (f"; did you mean {near}?" if near else "; see --help and --hydra-help")
    )

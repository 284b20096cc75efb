"""Overrides as a file of the group `experiment`: what was found by a search, to be run by one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from compresskd.config import overrides
from compresskd.config.faults import said

_LEFT_OUT = ("hydra.", "outputs_dir")  # where results go is for whoever runs it to say


class NotWritten(ValueError):
    """These overrides are no file; the message says why."""


def experiment_yaml(lines: Sequence[str]) -> str:
    """The text of conf/experiment/NAME.yaml that composes to what these overrides do.

    Raises:
        NotWritten: an override that a file cannot express.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(lines))
    except HydraException as error:
        raise NotWritten(said(error)) from error
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    for each in parsed:
        key = each.key_or_group
        if key.startswith(_LEFT_OUT):
            continue
        if each.is_delete() or each.package is not None:
            raise NotWritten(f"{each.input_line} is for the command line alone")
        if overrides.is_choice(each):
            defaults += _choice(each)
        else:
            _put(values, key, each)
    return "# @package _global_\n" + yaml.safe_dump(
        {"defaults": [*defaults, "_self_"], **values}, sort_keys=False
    )


def _choice(each: Override) -> list[Any]:
    key, value = each.key_or_group, each.value()
    if key == "experiment":
        return [str(name) for name in (value if isinstance(value, list) else [value])]
    if each.is_add():
        return [{f"/{key}": value}]
    return [{f"override /{key}": value}]


def _put(values: dict[str, Any], key: str, each: Override) -> None:
    *holders, name = key.split(".")
    node = values
    for holder in holders:
        node = node.setdefault(holder, {})
        if not isinstance(node, dict):
            raise NotWritten(f"{each.input_line} is set inside of another value")
    node[name] = _plain(each)


def _plain(each: Override) -> Any:
    value = each.value()
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError as error:
        raise NotWritten(f"{each.input_line}: {said(error)}") from error
    return value

"""What a model file says about its data and origin, without what the architecture tells already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compresskd.version import __version__

if TYPE_CHECKING:
    from compresskd.data.base import Data

_DECIMALS = 10_000  # normalisation is given with four digits


def about_of(data: Data) -> dict[str, Any]:
    """What whoever runs the model must know of the data that it was trained on."""
    more: dict[str, Any] = {} if data.task.name == "classification" else {"task": data.task.name}
    if data.preprocessing:
        more["preprocessing"] = dict(data.preprocessing)
    return {
        **more,
        "class_names": [str(name) for name in data.class_names],
        "input_shape": list(data.input_shape),
        "mean": list(data.mean),
        "std": list(data.std),
        "data": data.name,
        "versions": {"compresskd": __version__},
    }


def shorten_about(about: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Short keys; left out: label names "0" .. "K-1", the input shape that the constructor was given."""
    short = dict(about)
    if "class_names" in about:
        names = short.pop("class_names")
        short["c"] = 0 if names == _numbers(kwargs) else names
    if "input_shape" in about:
        shape = short.pop("input_shape")
        short["i"] = 0 if shape == kwargs.get("input_shape") else shape
    if about.keys() >= {"mean", "std"} and len(about["mean"]) == len(about["std"]):
        short["n"] = _decimal([*short.pop("mean"), *short.pop("std")])
    for key, letter in (("data", "d"), ("versions", "v")):
        if key in short:
            short[letter] = short.pop(key)
    if not short.keys() >= set("cidnv") or short["i"] != 0:
        return short
    # what nearly every file has, without its keys
    rest = {key: value for key, value in short.items() if key not in "idnv" and value != 0}
    return {"": [short[letter] for letter in "dnv"], **rest}


def restore_about(short: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `shorten_about` was given."""
    rest = dict(short)
    if "" in rest:
        usual = dict(zip("dnv", rest.pop(""), strict=True))
        rest = {"c": 0, "i": 0, **rest, **usual}
    about: dict[str, Any] = {}
    if "c" in rest:
        names = rest.pop("c")
        about["class_names"] = _numbers(kwargs) if names == 0 else names
    if "i" in rest:
        shape = rest.pop("i")
        about["input_shape"] = kwargs.get("input_shape") if shape == 0 else shape
    if "n" in rest:
        values = [v / _DECIMALS if isinstance(v, int) else v for v in rest.pop("n")]
        about["mean"], about["std"] = values[: len(values) // 2], values[len(values) // 2 :]
    for key, letter in (("data", "d"), ("versions", "v")):
        if letter in rest:
            about[key] = rest.pop(letter)
    return {**about, **rest}


def _numbers(kwargs: Mapping[str, Any]) -> list[str] | None:
    count = kwargs.get("num_classes")
    return [str(number) for number in range(count)] if type(count) is int and 0 < count < 100_000 else None


def _decimal(values: list[float]) -> list[int | float]:
    return [round(v * _DECIMALS) if round(v * _DECIMALS) / _DECIMALS == v else v for v in values]

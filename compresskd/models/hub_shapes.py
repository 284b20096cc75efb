"""Architectures of transformers with fewer blocks or a smaller width, by the options of their configuration."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from compresskd.models.huggingface import configuration, from_config, is_of_transformers
from compresskd.options import OptionError

# What shrinks with the hidden size: the sizes of layers, and the number of heads or the size of one.
_SIZES = (
    "hidden_size", "d_model", "intermediate_size", "d_ff", "n_inner", "ffn_dim", "pooler_hidden_size", "hidden_dim",
    "encoder_ffn_dim", "decoder_ffn_dim", "word_embed_proj_dim",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "num_key_value_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
_OF_A_HEAD = ("head_dim", "d_kv")


def shorter(spec: Mapping[str, Any], stack: str, layers: Sequence[int]) -> dict[str, Any]:
    """The architecture with these blocks of a stack alone: by the option that says how many there are.

    Raises:
        OptionError: no option does, such as where two stacks have one length.
    """
    stacks = _lengths(spec, stack)
    wanted = {**stacks, stack: len(layers)}
    if wanted == stacks:
        return dict(spec)
    for path in _paths(spec["kwargs"]["config"], stacks[stack]):
        changed = copy.deepcopy(dict(spec))
        holder = functools.reduce(lambda node, key: node[key], path[:-1], changed["kwargs"]["config"])
        holder[path[-1]] = len(layers)
        for name, value in holder.items():  # what is said of each block
            if isinstance(value, list) and len(value) == stacks[stack]:
                holder[name] = [value[number] for number in layers]
        with suppress(Exception):  # an architecture refuses other numbers than it needs
            if _lengths(changed, stack) == wanted:
                return changed
    kind = spec["kwargs"]["config"]["model_type"]
    raise OptionError("layers", list(layers), f"null: {kind} has no option for the blocks of {stack} alone")


def narrower(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The architecture of another hidden size, with heads of the same size, and everything else in proportion.

    Raises:
        OptionError: it has no option for it, or not of this width.
    """
    if not is_of_transformers(spec):
        raise OptionError("width", width, f"null: {spec['target']} is no architecture of transformers")
    config = spec["kwargs"]["config"]
    scaled = _found(config, (*_SIZES, *_HEADS))
    full = next(iter(_found(config, ("hidden_size",)).values()), None)
    if full is None or len(scaled) < 2:
        raise OptionError("width", width, f"null: {config['model_type']} has no option for its width")
    step = math.lcm(*(full // math.gcd(full, value) for value in scaled.values()))
    if width >= full or width % step:
        raise OptionError("width", width, f"a multiple of {step} below {full}, the teacher's")
    return _changed(spec, {name: value * width // full for name, value in scaled.items()})


def scaled(spec: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The architecture with every layer smaller by about a factor, with as many heads, of a smaller size each.

    Raises:
        ValueError: it has no option for its width.
    """
    config = spec["kwargs"]["config"]
    sizes, of_a_head = _found(config, _SIZES), _found(config, _OF_A_HEAD)
    if not _found(config, ("hidden_size",)):
        raise ValueError(f"{config['model_type']} has no option for its width")
    steps = dict.fromkeys(sizes, 2 * math.lcm(*_found(config, _HEADS).values()))
    steps |= dict.fromkeys(of_a_head, 2)  # rotary embeddings take halves
    values = sizes | of_a_head
    return _changed(
        spec, {n: max(step, round(values[n] * factor / step) * step) for n, step in steps.items()}
    )


def _found(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Those of the options that an architecture has, by the names that it gives them."""
    own = configuration(dict(config)).attribute_map
    found = dict.fromkeys(own.get(name, name) for name in names)
    return {name: config[name] for name in found if isinstance(config.get(name), int)}


def _changed(spec: Mapping[str, Any], options: Mapping[str, int]) -> dict[str, Any]:
    return {**spec, "kwargs": {**spec["kwargs"], "config": {**spec["kwargs"]["config"], **options}}}


def _lengths(spec: Mapping[str, Any], stack: str) -> dict[str, int]:
    """Of every list of blocks in an architecture but those inside of one."""
    with torch.device("meta"):
        model = from_config(**spec["kwargs"])
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: length for name, length in lists.items() if not name.startswith(f"{stack}.")}


def _paths(config: Mapping[str, Any], number: int) -> Iterator[tuple[str, ...]]:
    """Where a configuration says a number."""
    for name, value in config.items():
        if value == number and type(value) is int:
            yield (name,)
        elif isinstance(value, Mapping):
            yield from ((name, *inner) for inner in _paths(value, number))

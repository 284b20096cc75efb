"""Trained weights from a file: safetensors, or a torch file of which only the tensors are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the weights
PREFIXES = ("module.", "_orig_mod.")  # which DataParallel and torch.compile put before every name
SHOWN = 3  # names of a kind in an error; the rest are counted


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into a model, in place; every parameter and buffer must be found in it.

    `.safetensors` is read as that, any other file as one of `torch.save` with `weights_only=True`, so that
    nothing in it is executed. Prefixes `module.` and `_orig_mod.` are stripped, a dictionary that holds the
    weights under `state_dict`, `model_state_dict` or `model` is opened. Values are converted to the dtype of
    the parameter. Only `num_batches_tracked` of batch norms may be missing: old files lack these counters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as weights, they do not fit the model, or they are not finite.
    """
    path = Path(path)
    target = _without_compile(model)
    wanted = target.state_dict()
    ties = _ties(target)
    state = _completed(_strip_prefixes(_read(path), wanted), ties)
    if faults := _misfits(state, wanted):
        raise ValueError(
            f"{path} does not fit {type(target).__name__}: {'; '.join(faults)}. Choose the architecture, its "
            "options and the number of classes that the weights were saved from, or another file"
        )
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinite values ({_some(broken)})")
    if apart := [names for names in ties if any(not state[names[0]].equal(state[n]) for n in names[1:])]:
        raise ValueError(
            f"{path}: {_some([' and '.join(names) for names in apart])} differ in the file, and are one tensor in "
            f"{type(target).__name__}; choose an architecture that does not tie them (tie_word_embeddings: false)"
        )
    on_meta = any(tensor.is_meta for tensor in wanted.values())  # nothing there to copy into
    target.load_state_dict(state, strict=True, assign=on_meta)
    if on_meta:  # each name was given a parameter of its own
        _tie(target, ties)


def _ties(model: nn.Module) -> list[list[str]]:
    """The names of every parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _completed(state: Mapping[str, Tensor], ties: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """With the names that a file which holds tied parameters once leaves out."""
    more = {
        name: state[held]
        for group in ties
        if (held := next((name for name in group if name in state), None)) is not None
        for name in group
        if name not in state
    }
    return {**state, **more}


def _tie(model: nn.Module, ties: Sequence[Sequence[str]]) -> None:
    for first, *others in ties:
        parameter = model.get_parameter(first)
        for name in others:
            holder, _, key = name.rpartition(".")
            setattr(model.get_submodule(holder), key, parameter)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected weights, a .safetensors or a torch file")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of weights, found a directory")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path}: not a safetensors file, or a damaged one ({error}); a file that torch.save "
                "wrote must have another suffix, such as .pt"
            ) from error
    return _unwrap(_read_torch(path), path)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on foreign bytes the unpickler fails in its own, zipfile's and struct's ways
        if "Weights only load failed" in str(error) and (names := _foreign_names(path)):
            raise ValueError(
                f"{path}: holds Python objects beside tensors ({', '.join(names)}), which are never "
                "executed; save the weights alone: torch.save(model.state_dict(), path)"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: not a torch file of weights, or a damaged one ({reason}); expected .safetensors or "
            "what torch.save(model.state_dict(), path) writes"
        ) from error


def _foreign_names(path: Path) -> list[str]:
    """Names of what a torch file would have to import; none where the file is too damaged to tell."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:SHOWN]
    except Exception:
        return []


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPERS:  # each may be inside another; not "while", for a hostile file may hold itself
        if isinstance(content, Mapping):
            content = next((content[n] for n in WRAPPERS if isinstance(content.get(n), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        what = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{path}: expected tensors by name (a state_dict), found {what}")
    foreign = [
        f"{name!r} ({type(item).__name__})" for name, item in content.items() if not _is_entry(name, item)
    ]
    if foreign:
        raise ValueError(
            f"{path}: expected tensors by name, at the top or under one of {', '.join(WRAPPERS)}; found "
            f"{_some(foreign)}"
        )
    return dict(content)


def _is_entry(name: object, item: object) -> bool:
    dense = isinstance(item, Tensor) and item.layout == torch.strided and not item.is_meta
    return isinstance(name, str) and dense


def _without_compile(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _strip_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip prefixes, unless the model's own names begin so or two names would become one."""
    stripping = [prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in wanted)]

    def stripped(name: str) -> str:
        while prefix := next((prefix for prefix in stripping if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        return name

    renamed = {stripped(name): tensor for name, tensor in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)


def _misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state from being loaded: a clause with names for each kind of fault, none if it fits."""
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in wanted]
    pairs = [(n, state[n], wanted[n]) for n in wanted if n in state]
    shapes = [
        f"{n}: {list(found.shape)} in the file, {list(own.shape)} in the model"
        for n, found, own in pairs
        if found.shape != own.shape
    ]
    kinds = [
        f"{n}: {found.dtype} in the file, {own.dtype} in the model"
        for n, found, own in pairs
        if (found.is_floating_point(), found.is_complex()) != (own.is_floating_point(), own.is_complex())
    ]
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another kind": kinds,
    }
    return [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

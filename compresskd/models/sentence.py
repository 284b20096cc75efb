"""Encoders of transformers that return one vector a text: the states of its tokens, pooled."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.options import OptionError, one_of

MEAN, FIRST = "mean", "cls"
Pooling = Annotated[str, one_of(MEAN, FIRST)]
_MODULES, _POOLING = "modules.json", "1_Pooling"
# What sentence-transformers calls a kind of pooling in a file.
_MODES = {MEAN: "pooling_mode_mean_tokens", FIRST: "pooling_mode_cls_token"}


class Pooled:
    """Before the class of an encoder: its forward gives vectors [B, D] in place of states [B, L, D].

    Attributes:
        pooling: mean of the states of the tokens that are no padding, or cls, that of the first token.
        normalize: whether vectors have length 1.
    """

    pooling: str
    normalize: bool

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **named: Tensor) -> Tensor:
        """[B, D] of token ids and a mask [B, L]."""
        encode: Any = super()
        output = encode.forward(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **named)
        states = output.last_hidden_state
        if self.pooling == FIRST:
            vectors = states[:, 0]
        else:
            mask = attention_mask[:, :, None].to(states.dtype)
            vectors = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return F.normalize(vectors, dim=1) if self.normalize else vectors


@functools.cache
def _pooled_class(kind: type[nn.Module]) -> type[nn.Module]:
    # the name of the encoder's own class: it is what files of transformers say
    return type(kind.__name__, (Pooled, kind), {"__module__": __name__})


def pooled(model: nn.Module, pooling: str, *, normalize: bool) -> nn.Module:
    """The encoder, in place, as one that returns vectors; its parameters keep their names."""
    changed: Any = model
    changed.__class__ = _pooled_class(type(model))
    changed.pooling, changed.normalize = pooling, normalize
    return changed


def pooling_of(folder: Path) -> tuple[str, bool]:
    """How the encoder of a folder pools, and whether it normalises, as its `modules.json` says; the mean without one.

    Raises:
        OptionError: it does anything else besides.
    """
    if not (folder / _MODULES).is_file():
        return MEAN, False
    modules = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        expected = (
            f"an encoder of Transformer, Pooling and perhaps Normalize, not {', '.join(kinds)} ({_MODULES})"
        )
        raise OptionError("id", str(folder), expected)
    said = json.loads((folder / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    modes = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on is True]
    found = [pooling for pooling, mode in _MODES.items() if modes == [mode]]
    if not found:
        raise OptionError("id", str(folder), f"one that pools by {' or '.join(_MODES.values())}, not {modes}")
    return found[0], len(kinds) == 3


def write_pooling(folder: Path, kwargs: Mapping[str, Any], width: int, max_length: int | None) -> None:
    """The files by which sentence-transformers pools as the model does."""
    names = ["Transformer", "Pooling", *(["Normalize"] if kwargs["normalize"] else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    said = {"word_embedding_dimension": width, **dict.fromkeys(_MODES.values(), False)}
    for module in modules[1:]:
        (folder / module["path"]).mkdir()
    (folder / _MODULES).write_text(json.dumps(modules, indent=1), encoding="utf-8")
    said[_MODES[kwargs["pooling"]]] = True
    (folder / _POOLING / "config.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    length = {"max_seq_length": max_length, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(length), encoding="utf-8")

"""What a network is called with: one tensor, or tensors by the name of its argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TOKENS_TRIED = 16  # a trial keeps what every module says: of whole texts more than the model takes
Inputs = Tensor | Mapping[str, Tensor]
Model = Callable[..., Any]


@dataclass(frozen=True)
class Batch:
    """What the training loop sees, on the device of its split.

    inputs: one tensor [B, ...], or tensors [B, ...] by the name of the model's argument. Floats are normalised, and
    augmented if the split does so.
    targets: what the task compares with, the first dimension B: classes [B], values [B, D], classes of tokens [B, L].
    index: [B], int64, the position of each sample in its split.
    view: which augmented copy of the samples this is: 0 for a split with a single one, k for a bank of them, -1 if
    the augmentation is random, so that results must not be cached.
    weights: [B] float32, how much each sample counts in the label loss, or [B, L] each token; None where all count
    alike.
    labelled: whether the samples have labels; else `targets` only say which rows there are (see `UNLABELLED`).
    share_of: how many samples the batch has of which these are the share of one process; None where these are all.
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor
    view: int
    weights: Tensor | None = None
    labelled: bool = True
    share_of: int | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_together(self) -> int:
        """Samples of the whole batch, those of other processes included."""
        return len(self) if self.share_of is None else self.share_of

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, which positions are no padding; None where the inputs do not say."""
        mask = None if isinstance(self.inputs, Tensor) else self.inputs.get("attention_mask")
        return None if mask is None or mask.ndim != 2 else mask.bool()

    def call(self, model: Model) -> Any:
        """What `model` returns for these inputs."""
        return call(model, self.inputs)


def call(model: Model, inputs: Inputs) -> Any:
    """`model(inputs)`, or `model(**inputs)` where they have names."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def tensors_of(inputs: Inputs) -> Iterator[Tensor]:
    """Each tensor of the inputs."""
    yield from inputs.values() if isinstance(inputs, Mapping) else (inputs,)


def map_inputs(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Inputs of the same names with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return change(inputs)


@torch.no_grad()
def shortened(model: Model, inputs: Inputs) -> Inputs:
    """Of texts the beginning, where the model takes that, in the mode that it is in; other inputs as they are."""
    if not (isinstance(inputs, Mapping) and "input_ids" in inputs):
        return inputs
    short = map_inputs(lambda tokens: tokens[:, :_TOKENS_TRIED], inputs)
    try:
        call(model, short)
    except Exception:  # one that takes texts of one length alone
        return inputs
    return short


def sliced(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The samples from `start` up to `stop`."""
    return map_inputs(lambda tensor: tensor[start:stop], inputs)


def num_samples(inputs: Inputs) -> int:
    """The batch size."""
    return len(next(tensors_of(inputs)))


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, an object or mapping with `logits`, or the first of a tuple.

    Raises:
        TypeError: there are none.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", output[0] if isinstance(output, tuple | list) and output else None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returns {type(output).__name__}, expected a tensor, or what holds `logits`"
        )
    return found

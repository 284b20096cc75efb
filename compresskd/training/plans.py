"""By which plans the factorized layers of a model run in training and in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresskd import tt
from compresskd.data.base import Data
from compresskd.training.evaluation import evaluation_mode
from compresskd.training.precision import autocast
from compresskd.training.recipe import Recipe


def plans_used(model: nn.Module, data: Data, recipe: Recipe, *, trained: bool) -> dict[str, dict[str, str]]:
    """The plan of every layer that has one, at the batch sizes of `recipe`, as policy has it now.

    Args:
        model: on the device of `data`.
        trained: whether it is trained too, or evaluated alone.

    Returns:
        {layer name: {"training 64x784": plan, "inference 256x784": plan, ...}}; the sizes are those of the layer's
        own input, by which it plans.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tt.TTLinear | tt.TTConv2d)}
    found: dict[str, dict[str, str]] = {name: {} for name in layers}
    if not layers:
        return found
    modes = {"inference": _sizes(recipe.evaluation_batch_size, len(data.validation), len(data.test))}
    if trained:
        # the last batch of an epoch is left out where it has one sample
        modes = {"training": _sizes(recipe.batch_size, len(data.train)) - {1}, **modes}

    def note(name: str, layer: Any, input: Tensor) -> None:
        for mode, sizes in modes.items():
            for size in sorted(sizes, reverse=True):
                training, shape = mode == "training", (size * input.shape[0], *input.shape[1:])
                plan = (
                    "compiled"
                    if training and recipe.compile
                    else layer.plan(input.new_ones(shape), training=training)
                )
                found[name][f"{mode} {'x'.join(map(str, shape))}"] = plan

    handles = [
        layer.register_forward_pre_hook(
            lambda layer, args, named, name=name: note(name, layer, *args, *named.values()), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    example = next(iter(data.validation.batches(1))).inputs
    try:
        with evaluation_mode(model), torch.inference_mode(), autocast(recipe.precision, example.device):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sizes(batch_size: int, *num_samples: int) -> set[int]:
    """Of the batches in which so many samples are taken."""
    whole = {min(batch_size, count) for count in num_samples}
    return whole | {count % batch_size for count in num_samples} - {0}

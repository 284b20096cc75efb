"""By which plans the factorized layers of a model run in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import tt
from compresskd.data.base import Data
from compresskd.data.share import Share
from compresskd.distributed import active
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
    example = next(iter(data.validation.batches(1)))
    passes = {"inference": _sizes(recipe.evaluation_batch_size, len(data.validation), len(data.test))}
    if trained:
        # the last batch of an epoch is left out where it has one sample
        counts = [len(split) for split in (data.train, data.unlabelled) if split is not None]
        whole = _sizes(recipe.batch_size, *counts) - {1}
        passes = {"training": {size for each in whole for size in _shares(each)}, **passes}
    for mode, sizes in passes.items():
        training = mode == "training"

        def note(
            name: str, layer: Any, input: Tensor, training: bool = training, sizes: set[int] = sizes
        ) -> None:
            for size in sorted(sizes, reverse=True):
                shape = (size * input.shape[0], *input.shape[1:])
                compiled = training and recipe.compile
                plan = "compiled" if compiled else layer.plan(input.new_ones(shape), training=training)
                found[name][f"{'training' if training else 'inference'} {'x'.join(map(str, shape))}"] = plan

        # training is at the recipe's precision, scores are always taken in float32
        cast = autocast(recipe.precision if training else "fp32", data.validation.device)
        with cast, _told(layers, note), evaluation_mode(model), torch.inference_mode():
            example.call(model)
    return found


@contextmanager
def _told(layers: Mapping[str, nn.Module], note: Callable[..., None]) -> Iterator[None]:
    """Within, `note(name, layer, input)` is called at each call of a layer."""
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, args, named, name=name: note(name, layer, *args, *named.values()), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shares(size: int) -> set[int]:
    """How many samples of a batch of so many a process takes."""
    world = active().world
    bounds = (Share(rank, world).bounds(size) for rank in range(world))
    return {stop - start for start, stop in bounds}


def _sizes(batch_size: int, *num_samples: int) -> set[int]:
    """Of the batches in which so many samples are taken."""
    whole = {min(batch_size, count) for count in num_samples}
    return whole | {count % batch_size for count in num_samples} - {0}

"""From the samples that a notebook has to `Data`, which everything else takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from compresskd.data import Augmentation, Data, Normalize, Source, TensorSplit, assemble

Samples = DataLoader | Dataset | Sequence[Any]
_NUM_TRIED = 8  # samples that are read twice: random augmentation shows
_READ_AT_ONCE = 256

log = logging.getLogger("compresskd")


def data_of(
    train: Samples | Tensor,
    validation: Samples | None = None,
    test: Samples | None = None,
    *,
    augmentation: Augmentation | None = None,
) -> Data:
    """Read samples into memory, as they are: normalise them beforehand.

    A loader that takes every sample of its data set is read in the set's own order, any other as it comes; each once.

    Args:
        train: a DataLoader, a Dataset of (input, target), or a pair (inputs [N, F] or [N, C, H, W], targets [N] of
            classes from 0). Where nothing is trained and no sample is scored, inputs [N, ...] alone.
        validation: the like; None takes those of train.
        test: the like; None takes those of validation.
        augmentation: of the training samples, drawn anew in every epoch.

    Raises:
        ValueError: samples that cannot be used (see `compresskd.data.assemble`), or a data set that gives other
            values each time that it is asked.
    """
    if isinstance(train, Tensor):
        alone = _unlabelled(train)
        return alone if validation is None else replace(data_of(validation, test=test), train=alone.train)
    given = {"train": train, "validation": validation, "test": test}
    sources = {name: _source(name, samples) for name, samples in given.items() if samples is not None}
    validating = sources.get("validation", sources["train"])
    num_classes = max(int(source.targets.max()) for source in sources.values()) + 1
    data = assemble(
        "notebook",
        sources["train"],
        validation=validating,
        test=sources.get("test", validating),
        class_names=[str(label) for label in range(num_classes)],
        mean=[0.0],
        std=[1.0],
        pixel_max=1.0,
        augmentation=augmentation,
        allow_overlap=True,
    )
    for notice in data.notices:
        if notice.split in sources and ("test" in sources or "the test split" not in notice.text):
            log.warning("data: %s", notice.text)
    return data


def batch_size_of(samples: Samples | Tensor) -> int | None:
    """The batch size of a loader that has one."""
    return samples.batch_size if isinstance(samples, DataLoader) else None


def _source(name: str, samples: Samples) -> Source:
    inputs, targets = _tensors(name, samples)
    if targets.ndim != 1 or targets.is_floating_point() or len(targets) != len(inputs) or not len(targets):
        raise ValueError(
            f"{name}: expected as many targets as inputs, whole numbers [N] of classes from 0, got inputs "
            f"{list(inputs.shape)} and targets {list(targets.shape)} in {targets.dtype}"
        )
    inputs = inputs if inputs.dtype == torch.uint8 else inputs.float()
    return Source(inputs.cpu().contiguous(), targets.cpu().long())


def _tensors(name: str, samples: Samples) -> tuple[Tensor, Tensor]:
    if isinstance(samples, Sequence) and not isinstance(samples, Dataset):
        if len(samples) != 2:
            raise ValueError(f"{name}: expected a pair (inputs, targets), got {len(samples)} items")
        return torch.as_tensor(samples[0]).detach(), torch.as_tensor(samples[1])
    loader = samples if isinstance(samples, DataLoader) else DataLoader(samples, _READ_AT_ONCE)
    _check_repeatable(name, loader.dataset)
    if type(loader.sampler) in (SequentialSampler, RandomSampler):
        workers = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
        loader = DataLoader(loader.dataset, _READ_AT_ONCE, **workers)
    batches = [tuple(batch) for batch in loader]
    if not batches or {len(batch) for batch in batches} != {2}:
        raise ValueError(
            f"{name}: expected batches (inputs, targets), got {[len(batch) for batch in batches[:1]]}"
        )
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _check_repeatable(name: str, dataset: Any) -> None:
    """Refuse what augments by itself: read once, every epoch would see the same draw."""
    for position in range(min(_NUM_TRIED, len(dataset)) if hasattr(dataset, "__len__") else 0):
        first, second = (torch.as_tensor(dataset[position][0]) for _ in range(2))
        if not torch.equal(first, second):
            raise ValueError(
                f"{name}: its data set gives other values each time (sample {position}), but samples are read once; "
                "give it without random transforms, and augmentation=, one of compresskd.data.augmentation"
            )


class _AsTheyAre(Normalize):
    """Leaves inputs of any type and shape alone."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels


def _unlabelled(inputs: Tensor) -> Data:
    """Inputs alone, for what looks at no target: one class."""
    if not inputs.ndim or not len(inputs):
        raise ValueError(f"example: expected inputs [B, ...] of the model, got {list(inputs.shape)}")
    nothing = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    rows = torch.arange(len(inputs), device=inputs.device)
    normalize = _AsTheyAre((0.0,), (1.0,))
    split = TensorSplit("train", inputs.detach(), rows, nothing, normalize, "", device=inputs.device)
    validation, test = replace(split, name="validation"), replace(split, name="test")
    return Data("example", split, validation, test, 1, tuple(inputs.shape[1:]), ("",), (0.0,), (1.0,), "", "")

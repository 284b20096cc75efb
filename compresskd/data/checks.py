"""Refusals of data and options that cannot be used, each naming the option and what to write instead."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compresskd.data.base import Augmentation, Split

_ROWS_AT_ONCE = 1024


def check_declared(
    num_classes: int | None,
    input_shape: Sequence[int] | None,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
) -> None:
    """What the configuration says of the data, where it does, is what was loaded."""
    if num_classes is not None and num_classes != len(class_names):
        raise ValueError(
            f"data.num_classes: the data has {len(class_names)} classes, the configuration says "
            f"{num_classes}; write data.num_classes={len(class_names)}, or name another set or label column"
        )
    if input_shape is not None and tuple(input_shape) != shape:
        raise ValueError(
            f"data.input_shape: the data has samples of shape {list(shape)}, the configuration says "
            f"{list(input_shape)}; write data.input_shape=[{','.join(map(str, shape))}]"
        )


def check_augmentation(
    augmentation: Augmentation | None, bank: int | None, pixels: Tensor, pixel_max: float
) -> None:
    """The augmentation works on these pixels [N, ...] and its bank has something to hold."""
    if bank is not None and bank < 1:
        raise ValueError(f"data.augmentation_bank: expected null or 1 or more views per sample, got {bank}")
    if augmentation is None:
        if bank is not None:
            raise ValueError(
                f"data.augmentation_bank: {bank} augmented views were asked for, but data.augmentation is null; "
                f"write data/augmentation=crop_flip, or data.augmentation_bank=null"
            )
        return
    if pixels.ndim != 4:
        raise ValueError(
            f"data.augmentation: expected images [C, H, W] to augment, got samples of shape "
            f"{list(pixels.shape[1:])}; write data.augmentation=null"
        )
    if " at 0x" in repr(augmentation):
        raise ValueError(
            f"data.augmentation: {augmentation!r} has no repr that tells its options, which the "
            f"fingerprint of the data needs; make it a frozen dataclass"
        )
    # Running it once now tells what the first batch would, before anything is trained.
    images = pixels[:2]
    changed = augmentation(images, torch.full((len(images), augmentation.num_draws), 0.5), pixel_max)
    if changed.shape != images.shape or changed.dtype != images.dtype:
        raise ValueError(
            f"data.augmentation: expected images of the same shape and dtype back, {list(images.shape)} "
            f"{images.dtype}, got {list(changed.shape)} {changed.dtype} from {augmentation!r}"
        )


def check_splits(splits: Mapping[str, Split], class_names: tuple[str, ...]) -> None:
    """Every split has labelled samples of the same shape, and train has some of every class."""
    if len(class_names) < 2:
        raise ValueError(f"data.num_classes: expected 2 classes or more, got {list(class_names)}")
    shape = splits["train"].input_shape
    for split in splits.values():
        if len(split) == 0:
            raise ValueError(f"data: the {split.name} split has no sample")
        if split.input_shape != shape:
            raise ValueError(
                f"data: samples of the {split.name} split have shape {list(split.input_shape)}, those of train "
                f"{list(shape)}; write data.size=PIXELS (resize) or data.channels=3 (convert) to make them alike"
            )
        outside = ((split.targets < 0) | (split.targets >= len(class_names))).nonzero()
        if len(outside):
            position = int(outside[0])
            raise ValueError(
                f"data: expected labels 0 to {len(class_names) - 1} in the {split.name} split, got "
                f"{int(split.targets[position])} at sample {position}; an unlabelled split cannot be used: name "
                f"another one (data.{split.name}_split), or cut one from train"
            )
    counts = torch.bincount(splits["train"].targets, minlength=len(class_names))
    empty = [class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise ValueError(
            f"data: expected samples of every class in the train split, got none of {empty[:5]}; add some, or "
            f"remove the class"
        )


def check_class_names(class_names: tuple[str, ...]) -> None:
    """No two classes have one name, and every name can be written into a file."""
    names = [str(name) for name in class_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"data: expected a name of its own for each class, got {twice[:5]} more than once")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"data: the class name {name!a} is not valid UTF-8; rename it") from None


def check_finite(splits: Mapping[str, Split]) -> None:
    """Raise ValueError for samples that are not finite as a network gets them, with their split, number and place."""
    found: dict[int, Tensor] = {}
    for split in splits.values():
        if id(split.pixels) not in found:
            found[id(split.pixels)] = _non_finite(split)
        bad = found[id(split.pixels)][split.rows].nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            row = int(split.rows[first])
            raise ValueError(
                f"data: {len(bad):,} of {len(split):,} {split.name} samples hold NaN or inf once they are normalised; "
                f"the first is sample {first}"
                + ("" if row == first else f" (row {row} of what was loaded)")
                + "; mend or remove them"
            )


def _non_finite(split: Split) -> Tensor:
    """[M] bool, of all stored pixels [M, ...]: finite mean and deviation leave whole numbers finite."""
    pixels = split.pixels
    if pixels.is_floating_point() and len(pixels):
        extremes = torch.stack(pixels.aminmax(dim=0))  # NaN wherever there is one
        if not split.normalize(extremes).isfinite().all():
            parts = pixels.split(_ROWS_AT_ONCE)
            return torch.cat([~split.normalize(part).isfinite().flatten(1).all(1) for part in parts])
    return torch.zeros(len(pixels), dtype=torch.bool)

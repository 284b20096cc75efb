"""Refusals of data and options that cannot be used, each naming the option and what to write instead."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from compresskd.data.base import Augmentation, TensorSplit
from compresskd.options import OptionError
from compresskd.tasks import PROBABILITIES_WITHIN

_ROWS_AT_ONCE = 1024


def check_declared(
    num_classes: int | None,
    input_shape: Sequence[int] | None,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
) -> None:
    """What the configuration says of the data, where it does, is what was loaded."""
    if num_classes is not None and num_classes != len(class_names):
        expected = f"{len(class_names)}, as many as the data has, or another set or label column"
        raise OptionError("num_classes", num_classes, expected)
    if input_shape is not None and tuple(input_shape) != shape:
        raise OptionError(
            "input_shape", input_shape, f"[{','.join(map(str, shape))}], the shape of the data's samples"
        )


def check_augmentation(
    augmentation: Augmentation | None, bank: int | None, pixels: Tensor, pixel_max: float
) -> None:
    """The augmentation works on these pixels [N, ...] and its bank has something to hold."""
    if bank is not None and bank < 1:
        raise OptionError("augmentation_bank", bank, ">= 1 views of each sample, or null")
    if augmentation is None:
        if bank is not None:
            expected = "null where augmentation is null, or an augmentation (data/augmentation=crop_flip)"
            raise OptionError("augmentation_bank", bank, expected)
        return
    if pixels.ndim != 4:
        expected = f"null for samples of shape {list(pixels.shape[1:])}: images [C, H, W] are augmented"
        raise OptionError("augmentation", repr(augmentation), expected)
    if " at 0x" in repr(augmentation):
        expected = "a frozen dataclass: the fingerprint of the data needs a repr that tells its options"
        raise OptionError("augmentation", repr(augmentation), expected)
    # Running it once now tells what the first batch would, before anything is trained.
    images = pixels[:2]
    changed = augmentation(images, torch.full((len(images), augmentation.num_draws), 0.5), pixel_max)
    if changed.shape != images.shape or changed.dtype != images.dtype:
        expected = (
            f"one that returns {list(images.shape)} {images.dtype}, not {list(changed.shape)} {changed.dtype}"
        )
        raise OptionError("augmentation", repr(augmentation), expected)


def check_splits(splits: Mapping[str, TensorSplit], class_names: tuple[str, ...]) -> None:
    """Every split has labelled samples of the same shape, and train has some of every class."""
    shape = splits["train"].input_shape
    for split in splits.values():
        if len(split) == 0:
            raise ValueError(f"the {split.name} split has no sample")
        if split.input_shape != shape:
            raise ValueError(
                f"samples of the {split.name} split have shape {list(split.input_shape)}, those of train "
                f"{list(shape)}; write data.size=PIXELS (resize) or data.channels=3 (convert) to make them alike"
            )
    if splits["train"].targets.is_floating_point():
        check_numbers({split.name: split.targets for split in splits.values()})
    else:
        check_classes({split.name: split.targets for split in splits.values()}, class_names)


def check_unlabelled(split: TensorSplit, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless there are unlabelled samples, of the shape of those of train."""
    if split.input_shape != shape or not len(split):
        expected = f"samples of shape {list(shape)}, as train has them, got {list(split.input_shape)}"
        raise ValueError(
            f"unlabelled_path: expected {'a sample or more' if not len(split) else expected}; write data.size=PIXELS "
            "(resize) or data.channels=3 (convert) to make images alike"
        )


def check_numbers(targets: Mapping[str, Tensor]) -> None:
    """Raise ValueError for targets [N, D] of a split that are not finite, and for those of train that never change."""
    for name, values in targets.items():
        bad = (~values.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(
                f"expected finite targets in the {name} split, got {values[bad[0, 0]].tolist()} at sample "
                f"{int(bad[0, 0])}; mend or remove it"
            )
    same = (targets["train"] == targets["train"][:1]).all(dim=0).nonzero().flatten().tolist()
    if same and len(targets["train"]) > 1:
        raise ValueError(f"target {same[0]} of all train samples is the same: there is nothing to be learned")


def check_probabilities(values: np.ndarray, columns: Sequence[str], key: str, where: str) -> None:
    """Raise OptionError, of the option `key`, unless rows [N, K] are probabilities, a column for each class."""
    bad = (values < 0).any(axis=1) | (abs(values.sum(axis=1) - 1) > PROBABILITIES_WITHIN)
    if bad.any():
        row = int(bad.argmax())
        got = ", ".join(f"{value:g}" for value in values[row])
        expected = f"columns of probabilities that add up to 1, not {got}, in {where}"
        raise OptionError(key, list(columns), f"{expected}; write task=multi_label for independent labels")


def check_classes(targets: Mapping[str, Tensor], class_names: tuple[str, ...]) -> None:
    """Raise ValueError unless targets [N] of each split are classes, and train has all of them.

    Of targets [N, L], -100 stands where there is none, and train may lack a class.
    """
    if len(class_names) < 2:
        raise OptionError("num_classes", len(class_names), f">= 2, not only {list(class_names)}")
    for name, labels in targets.items():
        outside = (labels < 0) | (labels >= len(class_names))
        outside = (outside & (labels != -100) if labels.ndim > 1 else outside).nonzero()
        if len(outside):
            raise ValueError(
                f"expected labels 0 to {len(class_names) - 1} in the {name} split, got "
                f"{int(labels[tuple(outside[0])])} at sample {int(outside[0, 0])}; an unlabelled split cannot be used: "
                f"name another one (data.{name}_split), or cut one from train"
            )
    if targets["train"].ndim > 1:
        return
    counts = torch.bincount(targets["train"], minlength=len(class_names))
    empty = [class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise ValueError(
            f"expected samples of every class in the train split, got none of {empty[:5]}; add some, or "
            f"remove the class"
        )


def check_class_names(class_names: tuple[str, ...]) -> None:
    """No two classes have one name, and every name can be written into a file."""
    names = [str(name) for name in class_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"expected a name of its own for each class, got {twice[:5]} more than once")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the class name {name!a} is not valid UTF-8; rename it") from None


def check_finite(splits: Mapping[str, TensorSplit]) -> None:
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
                f"{len(bad):,} of {len(split):,} {split.name} samples hold NaN or inf once they are normalised; "
                f"the first is sample {first}"
                + ("" if row == first else f" (row {row} of what was loaded)")
                + "; mend or remove them"
            )


def _non_finite(split: TensorSplit) -> Tensor:
    """[M] bool, of all stored pixels [M, ...]: finite mean and deviation leave whole numbers finite."""
    pixels = split.pixels
    if pixels.is_floating_point() and len(pixels):
        extremes = torch.stack(pixels.aminmax(dim=0))  # NaN wherever there is one
        if not split.normalize(extremes).isfinite().all():
            parts = pixels.split(_ROWS_AT_ONCE)
            return torch.cat([~split.normalize(part).isfinite().flatten(1).all(1) for part in parts])
    return torch.zeros(len(pixels), dtype=torch.bool)

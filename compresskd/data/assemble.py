"""From decoded samples and options to `Data`: the one door for every data set, also a user's own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from compresskd.data.base import Augmentation, Data, Split
from compresskd.data.digest import content_digest
from compresskd.data.normalize import Normalize
from compresskd.data.stratify import cut_size, stratified_cut


@dataclass(frozen=True, eq=False)
class Source:
    """Decoded samples: pixels [N, C, H, W] or [N, F], uint8 or float32; targets [N], int64.

    `digest` is their `content_digest` where it is already known (from a cache file). `streamed` says that the
    pixels are a memory-mapped file to be read batch by batch.
    """

    pixels: Tensor
    targets: Tensor
    digest: str | None = None
    streamed: bool = False

    def __post_init__(self):
        if self.pixels.dtype not in (torch.uint8, torch.float32) or self.targets.dtype != torch.int64:
            raise ValueError(
                f"expected pixels in uint8 or float32 and targets in int64, got {self.pixels.dtype} and "
                f"{self.targets.dtype}"
            )
        if self.pixels.ndim not in (2, 4) or len(self.pixels) != len(self.targets):
            raise ValueError(
                f"expected pixels [N, C, H, W] or [N, F] and targets [N], got {list(self.pixels.shape)} and "
                f"{list(self.targets.shape)}"
            )


class Options(TypedDict, total=False):
    """What every data set takes from its configuration and hands to `assemble` as it is."""

    num_classes: int | None
    input_shape: Sequence[int] | None
    validation_fraction: float | None
    validation_count: int | None
    split_seed: int
    augmentation: Augmentation | None
    augmentation_bank: int | None


def assemble(
    name: str,
    train: Source,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    pixel_max: float,
    validation: Source | None = None,
    test: Source | None = None,
    test_fraction: float | None = None,
    **options: Unpack[Options],
) -> Data:
    """Check, cut and fingerprint.

    A missing `test` is cut from `train` by `test_fraction` and never depends on `split_seed`; a missing
    `validation` is cut from what remains by `validation_fraction` or `validation_count`. `num_classes` and
    `input_shape` are compared with what was loaded where they are not None.

    Raises ValueError, naming the option, for anything that does not fit, and TypeError for an unknown option.
    """
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"unknown options {unknown} for data set {name!r}; known are {[*Options.__annotations__]}"
        )
    class_names = tuple(class_names)
    normalize = Normalize(tuple(mean), tuple(std), float(pixel_max))
    augmentation, bank = options.get("augmentation"), options.get("augmentation_bank")
    _check_declared(options.get("num_classes"), options.get("input_shape"), train, class_names)
    _check_augmentation(augmentation, bank, train, pixel_max)
    normalize.check(tuple(train.pixels.shape[1:]))
    rows = torch.arange(len(train.targets))
    rows, test_part = _cut("test", train, rows, test, fraction=test_fraction)
    rows, validation_part = _cut(
        "validation",
        train,
        rows,
        validation,
        fraction=options.get("validation_fraction"),
        count=options.get("validation_count"),
        seed=options.get("split_seed", 0),
    )
    parts = {"train": (train, rows), "validation": validation_part, "test": test_part}
    splits = {split: _split(split, source, chosen, normalize) for split, (source, chosen) in parts.items()}
    _check_splits(splits, class_names)
    determines = [split.fingerprint for split in splits.values()] + [repr((normalize, augmentation, bank))]
    return Data(
        name=name,
        train=replace(splits["train"], augmentation=augmentation, augmentation_bank=bank),
        validation=splits["validation"],
        test=splits["test"],
        num_classes=len(class_names),
        input_shape=splits["train"].input_shape,
        class_names=class_names,
        mean=normalize.mean,
        std=normalize.std,
        fingerprint=hashlib.sha256(json.dumps(determines).encode()).hexdigest()[:16],
    )


def _cut(
    key: str,
    train: Source,
    rows: Tensor,
    given: Source | None,
    *,
    fraction: float | None,
    count: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, tuple[Source, Tensor]]:
    """Rows left to train, and a split: the one given, or as `data.KEY_fraction` or `data.KEY_count` says."""
    if given is not None:
        if fraction is not None or count is not None:
            raise ValueError(
                f"data.{key}_fraction: the set has its own {key} split, so nothing is cut; write "
                f"data.{key}_fraction=null{' data.validation_count=null' if key == 'validation' else ''}"
            )
        return rows, (given, torch.arange(len(given.targets)))
    size = cut_size(key, fraction, count, len(rows))
    try:
        stay, cut = stratified_cut(train.targets[rows], size, seed=seed)
    except ValueError as error:
        option = "fraction" if count is None else "count"
        raise ValueError(f"data.{key}_{option}: {error}; cut less") from error
    return rows[stay], (train, rows[cut])


def _split(name: str, source: Source, rows: Tensor, normalize: Normalize) -> Split:
    return Split(
        name=name,
        pixels=source.pixels,
        rows=rows,
        targets=source.targets[rows],
        normalize=normalize,
        fingerprint=_split_fingerprint(source, rows),
        streamed=source.streamed,
    )


def _split_fingerprint(source: Source, rows: Tensor) -> str:
    digest = hashlib.sha256((source.digest or content_digest(source.pixels, source.targets)).encode())
    digest.update(rows.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_declared(
    num_classes: int | None, input_shape: Sequence[int] | None, train: Source, class_names: tuple[str, ...]
) -> None:
    if num_classes is not None and num_classes != len(class_names):
        raise ValueError(
            f"data.num_classes: the data has {len(class_names)} classes, the configuration says "
            f"{num_classes}; write data.num_classes={len(class_names)}, or name another set or label column"
        )
    shape = list(train.pixels.shape[1:])
    if input_shape is not None and list(input_shape) != shape:
        raise ValueError(
            f"data.input_shape: the data has samples of shape {shape}, the configuration says "
            f"{list(input_shape)}; write data.input_shape={shape}".replace(", ", ",")
        )


def _check_augmentation(
    augmentation: Augmentation | None, bank: int | None, train: Source, pixel_max: float
) -> None:
    if augmentation is not None and train.pixels.ndim != 4:
        raise ValueError(
            f"data.augmentation: expected images [C, H, W] to augment, got samples of shape "
            f"{list(train.pixels.shape[1:])}; write data.augmentation=null"
        )
    if augmentation is not None:
        _try_augmentation(augmentation, train.pixels[:2], pixel_max)
    if bank is None:
        return
    if bank < 1:
        raise ValueError(f"data.augmentation_bank: expected null or 1 or more views per sample, got {bank}")
    if augmentation is None:
        raise ValueError(
            f"data.augmentation_bank: {bank} augmented views were asked for, but data.augmentation is null; "
            f"write data/augmentation=crop_flip, or data.augmentation_bank=null"
        )


def _try_augmentation(augmentation: Augmentation, images: Tensor, pixel_max: float) -> None:
    """Run it once now rather than fail in the first batch."""
    if " at 0x" in repr(augmentation):
        raise ValueError(
            f"data.augmentation: {augmentation!r} has no repr that tells its options, which the "
            f"fingerprint of the data needs; make it a frozen dataclass"
        )
    changed = augmentation(images, torch.full((len(images), augmentation.num_draws), 0.5), pixel_max)
    if changed.shape != images.shape or changed.dtype != images.dtype:
        raise ValueError(
            f"data.augmentation: expected images of the same shape and dtype back, {list(images.shape)} "
            f"{images.dtype}, got {list(changed.shape)} {changed.dtype} from {augmentation!r}"
        )


def _check_splits(splits: dict[str, Split], class_names: tuple[str, ...]) -> None:
    if len(class_names) < 2:
        raise ValueError(f"expected 2 classes or more, got {len(class_names)}: {list(class_names)}")
    for split in splits.values():
        if len(split) == 0:
            raise ValueError(f"the {split.name} split has no sample")
        if split.input_shape != splits["train"].input_shape:
            raise ValueError(
                f"samples of the {split.name} split have shape {list(split.input_shape)}, those of train "
                f"{list(splits['train'].input_shape)}; write data.size=PIXELS to resize all of them"
            )
        outside = ((split.targets < 0) | (split.targets >= len(class_names))).nonzero()
        if len(outside):
            position = int(outside[0])
            raise ValueError(
                f"expected labels 0 to {len(class_names) - 1} in the {split.name} split, got "
                f"{int(split.targets[position])} at sample {position}: an unlabelled split cannot be used"
            )
    counts = torch.bincount(splits["train"].targets, minlength=len(class_names))
    empty = [class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise ValueError(
            f"expected samples of every class in the train split, got none of {empty[:5]}; add some, or "
            f"remove the class"
        )

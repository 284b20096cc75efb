"""From decoded samples and options to `Data`: the one door for every data set, also a user's own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from compresskd.data.base import Augmentation, Data, TensorSplit
from compresskd.data.checks import (
    check_augmentation,
    check_class_names,
    check_declared,
    check_finite,
    check_splits,
    check_unlabelled,
)
from compresskd.data.digest import content_digest
from compresskd.data.identical import identical_samples, sample_hashes
from compresskd.data.normalize import Normalize
from compresskd.data.notice import Notice
from compresskd.data.stratify import check_cut, cut_rows


@dataclass(frozen=True, eq=False)
class Source:
    """Decoded samples: pixels [N, C, H, W] or [N, F], uint8 or float32; targets [N], int64, or [N, D], float32.

    `digest` is their `content_digest` and `hashes` [N] int64 their `sample_hashes` where these are already known
    (from a cache file). `streamed` says that the pixels are a memory-mapped file to be read batch by batch.
    `notices` are what was seen when they were read. `weights` [N] float32 are of the samples in the label loss.
    """

    pixels: Tensor
    targets: Tensor
    digest: str | None = None
    streamed: bool = False
    hashes: Tensor | None = None
    notices: tuple[Notice, ...] = ()
    weights: Tensor | None = None

    def __post_init__(self):
        kind = torch.int64 if self.targets.ndim == 1 else torch.float32
        if self.pixels.dtype not in (torch.uint8, torch.float32) or self.targets.dtype != kind:
            raise ValueError(
                f"expected pixels in uint8 or float32 and targets in int64, got {self.pixels.dtype} and "
                f"{self.targets.dtype}; write pixels.float(), targets.long()"
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
    allow_overlap: bool


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
    unlabelled: Source | None = None,
    test_fraction: float | None = None,
    notices: Sequence[Notice] = (),
    preprocessing: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Data:
    """Check, cut and fingerprint.

    A missing `test` is cut from `train` by `test_fraction` and never depends on `split_seed`; a missing
    `validation` is cut from what remains by `validation_fraction` or `validation_count`. `num_classes` and
    `input_shape` are compared with what was loaded where they are not None. Samples that are in two splits are
    counted; a split that lies wholly in train is refused unless `allow_overlap`. `notices` are what the caller has
    seen already. `unlabelled` samples have placeholders for targets.
    Of targets [N, D], `class_names` are the names of the D values or labels.

    Raises ValueError, naming the option, for anything that does not fit, and TypeError for an unknown option.
    """
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"unknown options {unknown} for data set {name!r}; known are {[*Options.__annotations__]}"
        )
    class_names = tuple(class_names)
    check_class_names(class_names)
    normalize = Normalize(tuple(mean), tuple(std), float(pixel_max))
    augmentation, bank = options.get("augmentation"), options.get("augmentation_bank")
    shape = tuple(train.pixels.shape[1:])
    check_declared(options.get("num_classes"), options.get("input_shape"), shape, class_names)
    check_augmentation(augmentation, bank, train.pixels, pixel_max)
    normalize.check(shape)
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
    check_splits(splits, class_names)
    sources = {split: source for split, (source, _) in parts.items()}
    if unlabelled is not None:
        rows = torch.arange(len(unlabelled.targets))
        splits["unlabelled"] = _split("unlabelled", unlabelled, rows, normalize)
        sources["unlabelled"] = unlabelled
        check_unlabelled(splits["unlabelled"], shape)
    check_finite(splits)
    overlap = identical_samples(splits, _hashes(sources, splits), allowed=options.get("allow_overlap", False))
    seen = [*notices, *(notice for source in _distinct(sources) for notice in source.notices), *overlap]
    determines = [splits[split].fingerprint for split in parts] + [repr((normalize, augmentation, bank))]
    augmented = {
        split: replace(splits[split], augmentation=augmentation, augmentation_bank=bank)
        for split in ("train", "unlabelled")
        if split in splits
    }
    return Data(
        name=name,
        train=augmented["train"],
        validation=splits["validation"],
        test=splits["test"],
        num_classes=len(class_names),
        input_shape=splits["train"].input_shape,
        class_names=class_names,
        mean=normalize.mean,
        std=normalize.std,
        fingerprint=short_hash([*determines, [str(name) for name in class_names]]),
        batches_fingerprint=short_hash(determines),
        notices=tuple(seen),
        preprocessing=preprocessing or {},
        unlabelled=augmented.get("unlabelled"),
    )


def short_hash(determines: Sequence[object]) -> str:
    """16 hexadecimal digits that two lists of plain values share if they are the same."""
    return hashlib.sha256(json.dumps(determines).encode()).hexdigest()[:16]


def _distinct(sources: Mapping[str, Source]) -> list[Source]:
    """Each source once: validation and test may be cut from that of train."""
    return list({id(source): source for source in sources.values()}.values())


def _hashes(sources: Mapping[str, Source], splits: Mapping[str, TensorSplit]) -> dict[str, Tensor]:
    """Of the samples of each split, computed where no cache had them."""
    known = {id(s): sample_hashes(s.pixels) if s.hashes is None else s.hashes for s in _distinct(sources)}
    return {name: known[id(sources[name])][split.rows] for name, split in splits.items()}


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
        check_cut(key, fraction, count, given=True)
        return rows, (given, torch.arange(len(given.targets)))
    stay, cut = cut_rows(key, train.targets[rows], rows, fraction=fraction, count=count, seed=seed)
    return stay, (train, cut)


def _split(name: str, source: Source, rows: Tensor, normalize: Normalize) -> TensorSplit:
    return TensorSplit(
        name=name,
        pixels=source.pixels,
        rows=rows,
        targets=source.targets[rows],
        normalize=normalize,
        fingerprint=_split_fingerprint(source, rows),
        streamed=source.streamed,
        weights=source.weights[rows] if source.weights is not None and name == "train" else None,
    )


def _split_fingerprint(source: Source, rows: Tensor) -> str:
    digest = hashlib.sha256((source.digest or content_digest(source.pixels, source.targets)).encode())
    digest.update(rows.numpy().tobytes())
    if source.weights is not None:
        digest.update(source.weights.numpy().tobytes())
    return digest.hexdigest()[:16]

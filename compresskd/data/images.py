"""What every set of encoded images shares: decoding once, the cache, and the options for both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Unpack

import torch

from compresskd.data.assemble import Options, Source, assemble
from compresskd.data.base import Data
from compresskd.data.cache import Cache, Stream
from compresskd.data.decode import BadImages, Decoder
from compresskd.data.digest import files_digest
from compresskd.data.draw import drawn_order
from compresskd.data.notice import Notice
from compresskd.data.stratify import check_cut
from compresskd.data.tree import SUFFIXES, Findings, image_files
from compresskd.data.unlabelled import KEY, of_unlabelled
from compresskd.options import OptionError
from compresskd.tasks import UNLABELLED

# Images from which mean and standard deviation are taken where the configuration gives none.
_NUM_MEASURED = 2048
_BLOCK = 256


@dataclass(frozen=True)
class Encoded:
    """Images of one split as they are stored: lists of (encoded bytes or file, label), and the class names."""

    class_names: tuple[str, ...]
    items: Iterable[list[tuple[bytes | Path | None, int]]]


def assemble_images(
    name: str,
    what: str,
    digest: str,
    splits: dict[str, Callable[[], Encoded]],
    *,
    decoder: Decoder,
    cache: Cache,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    test_fraction: float | None,
    unlabelled_path: str | None = None,
    notices: Sequence[Notice] = (),
    **options: Unpack[Options],
) -> Data:
    """Data from encoded images.

    `splits` has train and may have validation and test: functions that open them, called only where the cache has
    no good entry. `digest` identifies their content and `what` names it in messages. Mean and standard deviation
    per channel are measured on training images where they are None. All images below the folder `unlabelled_path` are
    samples without labels. Raises BadImages with those of all splits.
    """
    # Decoding may take long: what can be refused without it is refused first.
    cuts = (options.get("validation_fraction"), options.get("validation_count"))
    check_cut("validation", *cuts, given="validation" in splits)
    check_cut("test", test_fraction, None, given="test" in splits)
    if (mean is None) != (std is None):
        raise OptionError("mean", mean, f"{'null' if std is None else 'a value'}, as std is: both or neither")
    sources, class_names, bad = {}, (), []
    given, digests = set(splits), dict.fromkeys(splits, digest)
    if unlabelled_path is not None:
        digests["unlabelled"], items, more = _unlabelled(unlabelled_path)
        splits, notices = {**splits, "unlabelled": lambda: Encoded((), items)}, [*notices, *more]
    for split, open_split in splits.items():
        where = f"the {split} split of {what}" if split in given else str(unlabelled_path)

        def stream(open_split=open_split, where=where, split=split) -> Stream:
            encoded, seen = open_split(), []
            return Stream(encoded.class_names, decoder.blocks(encoded.items, where, split, seen), seen)

        key = sha256(repr((digests[split], split, decoder)).encode()).hexdigest()[:32]
        try:
            sources[split], names = cache.fetch(key, where, stream)
        except BadImages as error:
            bad.append(str(error))
            continue
        class_names = names if split == "train" else class_names
    if bad:
        raise BadImages("; and ".join(bad))
    if mean is None or std is None:
        mean, std = measure(sources["train"])
    return assemble(
        name,
        sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        unlabelled=sources.get("unlabelled"),
        class_names=class_names,
        mean=mean,
        std=std,
        pixel_max=255,
        test_fraction=test_fraction,
        notices=notices,
        **options,
    )


def _unlabelled(path: str) -> tuple[str, list[list[tuple[bytes | Path | None, int]]], list[Notice]]:
    """A digest of the images below a folder, these in blocks, and what is worth telling of what lies beside them."""
    root, findings = Path(path).expanduser(), Findings("unlabelled")
    if not root.is_dir():
        raise OptionError(KEY, path, "a folder of images")
    with of_unlabelled():
        files = image_files(root, findings)
    if not files:
        raise OptionError(KEY, path, f"a folder with images in it ({', '.join(sorted(SUFFIXES))})")
    blocks = blocks_of([(file, UNLABELLED) for file in files])
    return files_digest(root, files), blocks, list(findings.notices())


def blocks_of(
    items: list[tuple[bytes | Path | None, int]],
) -> list[list[tuple[bytes | Path | None, int]]]:
    """Images and labels in parts that are decoded together."""
    return [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]


def measure(source: Source) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in units of white, from a draw of 2,048 images."""
    chosen = drawn_order(source.targets, seed=0)[:_NUM_MEASURED].sort().values
    total = torch.zeros(2, source.pixels.shape[1], dtype=torch.float64)
    for rows in chosen.split(64):
        levels = source.pixels[rows].double() / 255
        total += torch.stack([levels.mean((2, 3)).sum(0), levels.square().mean((2, 3)).sum(0)])
    mean, square = total / len(chosen)
    # A channel that never changes says nothing, whatever it is divided by.
    std = (square - mean.square()).clamp(min=1e-6).sqrt()
    return [round(value, 4) for value in mean.tolist()], [
        max(round(value, 4), 1e-3) for value in std.tolist()
    ]

"""Samples that stand in two splits: what is learned by heart there is scored as if it had been understood."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from compresskd.data.base import Split
from compresskd.data.notice import Notice
from compresskd.tasks import IGNORED

_ROWS = 65_536  # that are hashed together
_PAIRS = (("test", "train"), ("validation", "train"), ("validation", "test"))
_UNLABELLED = tuple(("unlabelled", other) for other in ("train", "validation", "test"))


def sample_hashes(pixels: Tensor | np.ndarray) -> Tensor:
    """[N] int64: 64 bits of BLAKE2b of each sample [N, ...], as stored. Two of a million differ in all likelihood."""
    rows = np.ascontiguousarray(np.asarray(pixels))
    rows = rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).view(np.uint8)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(digests, np.int64).copy())


def identical_samples(
    splits: Mapping[str, Split], hashes: Mapping[str, Tensor], *, allowed: bool
) -> Iterator[Notice]:
    """A notice for each two splits that share samples; labels do not count.

    `hashes` are those of the samples of each split, in its order; there may be a split of unlabelled ones.
    Raises ValueError where every sample of
    validation or test is in train too, unless that is `allowed`, and where train holds one sample again and again.
    """
    if len(hashes["train"]) > 1 and len(hashes["train"].unique()) == 1:
        raise ValueError(
            f"all {len(hashes['train']):,} train samples are the same: there is nothing to be learned from them"
        )
    for one, other in (*_PAIRS, *(_UNLABELLED if "unlabelled" in splits else ())):
        shared = torch.isin(hashes[one], hashes[other])
        count, total = int(shared.sum()), len(splits[one])
        if count == total and other == "train" and not allowed:
            raise ValueError(
                f"all {total:,} {one} samples are in the train split as well, so that {one} accuracy would say "
                f"nothing; name another {one} split, or write data.allow_overlap=true (++data.allow_overlap=true where "
                f"the set has no such key)"
            )
        if count:
            text = f"{count:,} of {total:,} {one} samples ({_percent(count, total)}) are in the {other} split as well"
            relabelled = one != "unlabelled" and count - int(
                torch.isin(_labelled(splits, hashes, one), _labelled(splits, hashes, other)).sum()
            )
            if relabelled:
                text += f", {relabelled:,} of them with another label"
            examples = [f"sample {row}" for row in shared.nonzero().flatten()[:20].tolist()]
            yield Notice("identical", one, count, text, tuple(examples))


def _labelled(splits: Mapping[str, Split], hashes: Mapping[str, Tensor], name: str) -> Tensor:
    """Hashes of samples with their labels: odd multiples keep different labels apart."""
    targets = splits[name].targets
    labels = targets if targets.ndim == 1 else torch.cat([_row_hashes(part) for part in targets.split(_ROWS)])
    return hashes[name] + labels * 0x5851F42D4C957F2D


def _row_hashes(targets: Tensor) -> Tensor:
    """[N] int64 of targets [N, L]; of tokens, -100 at the end of a row does not count."""
    if targets.is_floating_point():
        return sample_hashes(targets)
    return ((targets.long() - IGNORED) * torch.arange(1, 2 * targets.shape[1], 2)).sum(1)


def _percent(count: int, total: int) -> str:
    share = 100 * count / total
    return f"{share:.0f}%" if share >= 1 else f"{share:.1g}%"

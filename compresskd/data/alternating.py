"""Training samples with and without labels: the batches of both, in turn."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compresskd.data.assemble import short_hash
from compresskd.data.base import Data, Split
from compresskd.data.randomness import generator
from compresskd.tasks import Batch


@dataclass(frozen=True, eq=False)
class Alternating(Split):
    """The batches of a labelled split and those of an unlabelled one, each sample once an epoch.

    A batch is of one kind. The two kinds are spread evenly over an epoch, each batch in the order and with the
    augmentation that its own split gives it; which kind comes when is a pure function of (seed, epoch). Positions of
    unlabelled samples follow those of the labelled ones.
    """

    labelled: Split
    unlabelled: Split
    name: str = field(init=False)
    targets: Tensor = field(init=False)
    fingerprint: str = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        both = self.labelled, self.unlabelled
        told = {
            "name": self.labelled.name,
            "targets": self.labelled.targets,
            "fingerprint": short_hash([each.fingerprint for each in both]),
            "device": self.labelled.device,
        }
        for name, value in told.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    @property
    def num_views(self) -> int | None:
        """Those of the labelled samples; the unlabelled ones are augmented as they are."""
        return self.labelled.num_views

    def to(self, device: torch.device | str) -> "Alternating":
        """Both on `device`."""
        return Alternating(self.labelled.to(device), self.unlabelled.to(device))

    def take(self, positions: Tensor, fingerprint: str) -> Split:
        """Not needed: what looks at a few samples looks at labelled ones."""
        raise NotImplementedError("take from the labelled or the unlabelled samples")

    def num_batches(self, batch_size: int, *, training: bool | None = None) -> int:
        """Those of both kinds; in training each kind leaves out a last batch of one sample."""
        training = True if training is None else training
        both = self.labelled, self.unlabelled
        return sum(each.num_batches(batch_size, training=training) for each in both)

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        seed: int = 0,
        start: int = 0,
        view: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of one pass, as `Split.batches` says; in order, the labelled ones come first."""
        self.checked_pass(batch_size, epoch, start, view)
        training = epoch is not None
        counts = [
            each.num_batches(batch_size, training=training) for each in (self.labelled, self.unlabelled)
        ]
        kinds = torch.arange(2).repeat_interleave(torch.tensor(counts))
        if epoch is not None:
            kinds = _spread(counts, seed, epoch)
        done = [int((kinds[:start] == kind).sum()) for kind in (0, 1)]
        parts = [
            part.batches(batch_size, epoch=epoch, seed=seed, start=skipped, view=view)
            for part, skipped in zip((self.labelled, self.unlabelled), done, strict=True)
        ]
        return (self._of_kind(kind, next(parts[kind])) for kind in kinds[start:].tolist())

    def every_sample(self, batch_size: int, *, view: int | None = None, seed: int = 0) -> Iterator[Batch]:
        """As `Split.every_sample` says, the labelled samples first."""
        both = self.labelled, self.unlabelled
        for kind, part in enumerate(both):
            for batch in part.every_sample(batch_size, view=view, seed=seed):
                yield self._of_kind(kind, batch)

    def _of_kind(self, kind: int, batch: Batch) -> Batch:
        return replace(batch, index=batch.index + len(self.labelled), labelled=False) if kind else batch


def _spread(counts: list[int], seed: int, epoch: int) -> Tensor:
    """[sum of counts] of 0 and 1: each kind at even distances, from a random place within the first."""
    offsets = torch.rand(2, dtype=torch.float64, generator=generator("kinds", seed, epoch))
    places = [
        (torch.arange(n) + offset) / max(1, n) for n, offset in zip(counts, offsets.tolist(), strict=True)
    ]
    kinds = torch.arange(2).repeat_interleave(torch.tensor(counts))
    return kinds[torch.cat(places).sort(stable=True).indices]


def with_unlabelled(data: Data) -> Data:
    """The data as a training with a teacher sees them: with the unlabelled samples among those of train."""
    if data.unlabelled is None:
        return data
    train = Alternating(data.train, data.unlabelled)
    both = short_hash([data.batches_fingerprint, data.unlabelled.fingerprint])
    return replace(data, train=train, batches_fingerprint=both)

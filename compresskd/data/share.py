"""Which samples of a batch one of several processes takes."""

from dataclasses import dataclass, replace

from compresskd.tasks import Batch, sliced


@dataclass(frozen=True)
class Share:
    """The share of process `rank` of `world` in every batch: consecutive samples, one more or less than another has.

    Of a batch with fewer samples than there are processes each takes all.
    """

    rank: int = 0
    world: int = 1

    def bounds(self, count: int) -> tuple[int, int]:
        """The first sample of the share in a batch of `count` samples, and the one after its last."""
        if count < self.world:
            return 0, count
        return self.rank * count // self.world, (self.rank + 1) * count // self.world

    def of(self, batch: Batch) -> Batch:
        """The share of a batch, whose texts stay filled up to the longest of all."""
        if self.world == 1 or len(batch) < self.world:
            return batch
        start, stop = self.bounds(len(batch))
        return replace(
            batch,
            inputs=sliced(batch.inputs, start, stop),
            targets=batch.targets[start:stop],
            index=batch.index[start:stop],
            weights=None if batch.weights is None else batch.weights[start:stop],
            share_of=len(batch),
        )


WHOLE = Share()

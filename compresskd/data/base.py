"""Data sets: `Data` holds three `Split`s, a `Split` yields `Batch`es.

Nothing here has state: the batches of an epoch are a pure function of (seed, epoch, step), which is what
makes an exact resume in the middle of an epoch possible.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from compresskd.data.normalize import Normalize
from compresskd.data.notice import Notice
from compresskd.data.randomness import generator
from compresskd.data.share import Share
from compresskd.data.vocabulary import Vocabulary
from compresskd.tasks import Batch, Classification, Inputs, Task


class Augmentation(Protocol):
    """A random change of images that depends on nothing but its arguments.

    `num_draws` uniform numbers decide what happens to one image; `draws` [B, num_draws] float32 in [0, 1)
    holds them. Images [B, C, H, W] keep their shape and dtype; `pixel_max` is the value of white.
    """

    @property
    def num_draws(self) -> int:
        """How many uniform numbers one image needs."""
        ...

    def __call__(self, images: Tensor, draws: Tensor, pixel_max: float) -> Tensor:
        """The changed images."""
        ...


class Split(ABC):
    """Samples of one purpose: `name` is 'train', 'validation' or 'test'. A frozen value.

    Attributes:
        targets: [N, ...] of all samples, in the order of the split; -100 where a sample has fewer than others.
        fingerprint: two splits share it if and only if they hold the same samples in the same order.
        device: where batches are.
        num_bytes: of the text whose tokens are predicted, for bits per byte; None where it is of no text.
    """

    name: str
    targets: Tensor
    fingerprint: str
    device: torch.device
    num_bytes: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many samples."""

    @property
    def strata(self) -> Tensor | None:
        """[N] int64, classes that a draw of a few samples takes in their shares; None draws uniformly."""
        targets = self.targets
        return targets if targets.ndim == 1 and not targets.is_floating_point() else None

    @property
    def num_views(self) -> int | None:
        """How many different views a sample has over all epochs; None when every epoch draws new ones."""
        return 1

    @property
    def typical(self) -> int:
        """The position of the sample that stands for all where costs are measured: of texts one of median length."""
        return 0

    @property
    def example(self) -> Inputs:
        """The typical sample, alone in a batch, as a model takes it."""
        position = torch.tensor([self.typical])
        return next(iter(self.take(position, f"{self.fingerprint}/typical").batches(1))).inputs

    @abstractmethod
    def to(self, device: torch.device | str) -> "Split":
        """The same split with its batches on `device`."""

    @abstractmethod
    def take(self, positions: Tensor, fingerprint: str) -> "Split":
        """The samples at these positions [M] int64, in this order, unaugmented."""

    def num_batches(self, batch_size: int, *, training: bool | None = None) -> int:
        """How many batches `batches` yields: in training (the default for 'train'), or in order."""
        training = self.name == "train" if training is None else training
        full, rest = divmod(len(self), _positive("batch_size", batch_size))
        # Batch statistics of a single sample do not exist: training leaves a last batch of one out.
        return full + (rest > (1 if training and full else 0))

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        seed: int = 0,
        start: int = 0,
        view: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of one pass.

        Without `epoch`: every sample in order, no augmentation (evaluation). With it: an order and an
        augmentation that are a pure function of (seed, epoch), the last batch left out if it has one sample.
        With `view` in place of `epoch`: every sample in order, as the epochs of that view and seed show it.
        `start` skips that many batches at no cost and yields exactly what would have come after them.

        Raises ValueError for batch_size < 1, epoch < 0, a view that is none of `num_views`, and a start outside
        0..num_batches.
        """

    def every_sample(self, batch_size: int, *, view: int | None = None, seed: int = 0) -> Iterator[Batch]:
        """Batches of every sample once, unaugmented or as `view` shows them, in the order that takes the least time.

        There are as many as `batches` yields in order; `index` says which samples each has.
        """
        return self.batches(batch_size, view=view, seed=seed)

    def shared(
        self, share: Share, batch_size: int, *, epoch: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Of each batch of an epoch the share of one process: the same samples, seen alike, as if it were alone."""
        return map(share.of, self.batches(batch_size, epoch=epoch, seed=seed, start=start))

    def checked_pass(self, batch_size: int, epoch: int | None, start: int, view: int | None) -> int:
        """The number of batches of a pass. Raises ValueError as `batches` says."""
        num_batches = self.num_batches(batch_size, training=epoch is not None)
        if not 0 <= start <= num_batches:
            raise ValueError(f"start: expected 0 to {num_batches} batches to skip, got {start}")
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch: expected 0 or more, got {epoch}")
        if epoch is not None and view is not None:
            raise ValueError(f"view: expected none beside epoch {epoch}, which has its own, got {view}")
        if view is not None and (self.num_views is None or not 0 <= view < self.num_views):
            raise ValueError(
                f"view: expected one of the {self.num_views or 0} fixed views of {self.name}, got {view}"
            )
        return num_batches


@dataclass(frozen=True, eq=False)
class TensorSplit(Split):
    """Samples of one shape: images, or rows of a table.

    pixels: [M, C, H, W] or [M, F], uint8 or float32, as stored. rows: [N], int64, which of them are this
    split's, in its order. targets: [N], int64, or [N, D] float32. weights: [N], float32, of the samples in the label
    loss, where they do not count alike. `fingerprint` is that of stored pixels and
    targets, however these are then normalised.
    With `streamed`, pixels stay where they are (a memory-mapped file) and only batches go to `device`.
    """

    name: str
    pixels: Tensor
    rows: Tensor
    targets: Tensor
    normalize: Normalize
    fingerprint: str
    augmentation: Augmentation | None = None
    augmentation_bank: int | None = None
    streamed: bool = False
    device: torch.device = field(default=torch.device("cpu"))
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.pixels.shape[1:])

    @property
    def num_views(self) -> int | None:
        """How many different views a sample has over all epochs; None when every epoch draws new ones."""
        return 1 if self.augmentation is None else self.augmentation_bank

    def take(self, positions: Tensor, fingerprint: str) -> "TensorSplit":
        """The samples at these positions, in this order, unaugmented."""
        return replace(
            self,
            rows=self.rows[positions.to(self.rows.device)],
            targets=self.targets[positions.to(self.targets.device)],
            weights=None if self.weights is None else self.weights[positions.to(self.weights.device)],
            fingerprint=fingerprint,
            augmentation=None,
            augmentation_bank=None,
        )

    def to(self, device: torch.device | str) -> "TensorSplit":
        """The same split with its batches, and its pixels unless they are streamed, on `device`."""
        device = torch.device(device)
        if device == self.device:
            return self
        weights = None if self.weights is None else self.weights.to(device)
        moved = replace(self, device=device, targets=self.targets.to(device), weights=weights)
        if self.streamed:
            return moved
        pixels = self.pixels.index_select(0, self.rows).to(device)
        return replace(moved, pixels=pixels, rows=torch.arange(len(self), device=device))

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        seed: int = 0,
        start: int = 0,
        view: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of one pass, as `Split.batches` says; the order is a permutation of all samples."""
        num_batches = self.checked_pass(batch_size, epoch, start, view)
        return self._iterate(self._steps(batch_size, start, num_batches), *self._plan(epoch, seed, view))

    def shared(
        self, share: Share, batch_size: int, *, epoch: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """As `Split.shared`; samples of other processes are neither read nor augmented."""
        num_batches = self.checked_pass(batch_size, epoch, start, None)
        whole = self._steps(batch_size, start, num_batches)
        own = [_share_of(step, share) for step in whole]
        for step, mine, batch in zip(
            whole, own, self._iterate(own, *self._plan(epoch, seed, None)), strict=True
        ):
            yield batch if mine == step else replace(batch, share_of=step.stop - step.start)

    def _steps(self, batch_size: int, start: int, stop: int) -> list[slice]:
        """Which places of the order each batch has."""
        ends = [min((step + 1) * batch_size, len(self)) for step in range(start, stop)]
        return [slice(step * batch_size, end) for step, end in enumerate(ends, start)]

    def _plan(self, epoch: int | None, seed: int, view: int | None) -> tuple[Tensor, int, Tensor | None]:
        """Order, view and draws of one pass."""
        if epoch is None:
            order = torch.arange(len(self))
            if view is None:
                # Plain pixels are no member of a bank of augmented views.
                return order, 0 if self.augmentation is None else -1, None
        else:
            order = torch.randperm(len(self), generator=generator("order", seed, epoch))
            view = -1 if self.num_views is None else epoch % self.num_views
        if self.augmentation is None:
            return order, 0, None
        shown = view if view >= 0 or epoch is None else epoch
        # One row of draws per sample of the split, so that a view does not depend on the batch it stands in.
        draws = torch.rand(
            len(self), self.augmentation.num_draws, generator=generator("augmentation", seed, shown)
        )
        return order, view, draws.to(self.device)

    def _iterate(self, steps: list[slice], order: Tensor, view: int, draws: Tensor | None) -> Iterator[Batch]:
        rows = self.rows[order.to(self.rows.device)]
        order = order.to(self.device)
        stored = self._gather([rows[step] for step in steps])
        for step, pixels in zip(steps, stored, strict=True):
            index = order[step]
            images = pixels
            if self.augmentation is not None and draws is not None:
                images = self.augmentation(pixels, draws[index], self.normalize.pixel_max)
            weights = None if self.weights is None else self.weights[index]
            yield Batch(self.normalize(images), self.targets[index], index, view, weights)

    def _gather(self, parts: list[Tensor]) -> Iterator[Tensor]:
        """Stored pixels of each part, on the device; streamed ones are read one batch ahead."""
        if not self.streamed:
            yield from (self.pixels.index_select(0, part) for part in parts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="compresskd-data") as reader:
            ahead = reader.submit(self._read, parts[0]) if parts else None
            for following in [*parts[1:], None]:
                if ahead is None:
                    return
                pixels = ahead.result()
                ahead = None if following is None else reader.submit(self._read, following)
                yield pixels

    def _read(self, part: Tensor) -> Tensor:
        pixels = self.pixels.index_select(0, part)
        if self.device.type == "cuda":
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.to(self.device)


def _share_of(step: slice, share: Share) -> slice:
    first, last = share.bounds(step.stop - step.start)
    return slice(step.start + first, step.start + last)


MAX_OUTPUTS = 2**25  # numbers that a model answers at once where it is not trained: 128 MiB


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for training.

    Attributes:
        num_classes: how many outputs a model must have: classes, labels, values of a target, tokens of a vocabulary; 0
            where the teacher says it.
        input_shape: of one sample; empty where samples differ in length.
        class_names: of classes, labels or values; empty for language models.
        mean, std: those of `Normalize`, inputs = (pixels / pixel_max - mean) / std; empty where inputs are no floats.
        fingerprint: of everything that determines the batches (the splits, normalisation, augmentation and its bank)
            and of the names of the classes.
        batches_fingerprint: the same without the names (what version 0.1 recorded as `fingerprint`).
        notices: what a user should know of the data.
        task: what a model is asked of these samples.
        unlabelled: samples that only terms on a teacher see (see `compresskd.data.alternating`); None without any.
        preprocessing: plain values by which raw inputs become those of the model, besides the above: the tokenizer.
        vocabulary: what became of the tokens of that tokenizer, where some are left out.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    batches_fingerprint: str
    notices: tuple[Notice, ...] = ()
    task: Task = field(default_factory=Classification)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Split | None = None
    vocabulary: Vocabulary | None = None

    @property
    def unlabelled_facts(self) -> dict[str, Any] | None:
        """For the record: how many unlabelled samples there are, and their fingerprint; None without any."""
        found = self.unlabelled
        return None if found is None else {"num": len(found), "fingerprint": found.fingerprint}

    def at_once(self, most: int) -> int:
        """Samples, at most `most`, that a model can answer together: each token of a text asks for a vocabulary."""
        if self.task.rows_are_samples:
            return most
        lengths = [getattr(split, "lengths", None) for split in (self.train, self.validation, self.test)]
        longest = max((int(each.max()) for each in lengths if each is not None), default=1)
        return max(1, min(most, MAX_OUTPUTS // (longest * self.num_classes)))

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its splits on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            unlabelled=None if self.unlabelled is None else self.unlabelled.to(device),
        )


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")
    return value

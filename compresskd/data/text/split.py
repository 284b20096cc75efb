"""A split of texts: batches of token numbers, filled up to the longest text of each."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compresskd.data.base import Split
from compresskd.data.randomness import generator
from compresskd.data.text.masking import Masking
from compresskd.tasks import IGNORED, Batch, Inputs

_BATCHES_TOGETHER = 50  # whose texts are sorted by length
_AT_ONCE = 2**20  # tokens that are hashed together


@dataclass(frozen=True, eq=False)
class TextSplit(Split):
    """Samples that are sequences of tokens.

    columns: [T] int32 by the name of the model's argument, `input_ids` first; sample m is at offsets[m]:offsets[m + 1].
    rows: [N] int64, which samples are this split's, in its order. targets: [N], [N, D], or of tokens [N, L], -100
    where there is none, cut to the length of the batch. `padding` has for each column the number that fills it up.
    With `masked`, inputs have an `attention_mask`, 1 for tokens and 0 for padding. weights: [N] float32, of samples in
    the label loss; token_weights: [K] float32, of the classes of tokens. sizes: [N] int64, bytes of the text that is
    predicted of each. With `group_by_length`, texts of about one length come together in training. `masking` hides
    tokens, which are then the targets: in training those of a batch are a pure function of (seed, epoch, step), else
    of the step alone. With `decoder_start`, targets [N, T] are the tokens of another text, and inputs have
    `decoder_input_ids`, that token and the targets but their last. With `streamed`, columns stay where they are and
    batches go to `device`.
    """

    name: str
    columns: Mapping[str, Tensor]
    offsets: Tensor
    rows: Tensor
    targets: Tensor
    fingerprint: str
    padding: Mapping[str, int]
    masked: bool = True
    weights: Tensor | None = None
    token_weights: Tensor | None = None
    sizes: Tensor | None = None
    num_bytes: int | None = None
    group_by_length: bool = False
    masking: Masking | None = None
    decoder_start: int | None = None
    streamed: bool = False
    device: torch.device = field(default=torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, tokens of each sample."""
        return self.offsets[self.rows + 1] - self.offsets[self.rows]

    @property
    def num_views(self) -> int | None:
        """One, but where other tokens are hidden in each epoch."""
        return 1 if self.masking is None else None

    @property
    def typical(self) -> int:
        """The position of a text of median length, of two the longer one."""
        return int(self.lengths.argsort(stable=True)[len(self) // 2])

    @property
    def of_tokens(self) -> bool:
        """Whether there is a target for each token."""
        return self.targets.ndim == 2 and not self.targets.is_floating_point()

    @property
    def extremes(self) -> Tensor:
        """[1 or 2] int64, the positions of the longest sample and of the one with the largest number of a token."""
        ids = self.columns["input_ids"]
        largest = torch.searchsorted(self.offsets, ids.argmax(), right=True) - 1
        found = (self.rows == largest).nonzero().flatten()[:1]  # none where it is another split's
        return torch.cat([self.lengths.argmax()[None], found]).cpu()

    def take(self, positions: Tensor, fingerprint: str) -> "TextSplit":
        """The samples at these positions, in this order."""
        here = positions.to(self.rows.device)
        sizes = None if self.sizes is None else self.sizes[here]
        return replace(
            self,
            rows=self.rows[here],
            targets=self.targets[here],
            weights=None if self.weights is None else self.weights[here],
            sizes=sizes,
            num_bytes=None if sizes is None else int(sizes.sum()),
            fingerprint=fingerprint,
        )

    def to(self, device: torch.device | str) -> "TextSplit":
        """The same split with its batches, and its columns unless they are streamed, on `device`."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = replace(self, device=device)
        if self.streamed:
            return moved
        tensors = {"offsets", "rows", "targets", "weights", "token_weights", "sizes"}
        there = {
            name: None if tensor is None else tensor.to(device)
            for name, tensor in vars(self).items()
            if name in tensors
        }
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return replace(moved, columns=columns, **there)

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        seed: int = 0,
        start: int = 0,
        view: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of one pass, as `Split.batches` says."""
        num_batches = self.checked_pass(batch_size, epoch, start, view)
        steps = self._steps(batch_size, epoch, seed)[:num_batches]
        batches = map(self._batch, steps[start:])
        if self.masking is None:
            return batches
        key = (0,) if epoch is None else (1, seed, epoch)
        return (self._hidden(batch, step, key) for step, batch in enumerate(batches, start))

    def every_sample(self, batch_size: int, *, view: int | None = None, seed: int = 0) -> Iterator[Batch]:
        """Texts of one length together, the longest first, so that next to nothing is filled up.

        Where tokens are hidden by the step, in order.
        """
        if self.masking is not None:
            return self.batches(batch_size, view=view, seed=seed)
        self.checked_pass(batch_size, None, 0, view)
        order = self.lengths.cpu().argsort(descending=True, stable=True)
        return map(self._batch, order.split(batch_size))

    def _hidden(self, batch: Batch, step: int, key: tuple[int, ...]) -> Batch:
        assert self.masking is not None
        assert not isinstance(batch.inputs, Tensor)
        ids, targets = self.masking(batch.inputs["input_ids"], generator("mask", *key, step))
        return replace(batch, inputs={**batch.inputs, "input_ids": ids}, targets=targets, view=-1)

    def _steps(self, batch_size: int, epoch: int | None, seed: int) -> list[Tensor]:
        """The positions of each batch."""
        if epoch is None:
            return list(torch.arange(len(self)).split(batch_size))
        order = torch.randperm(len(self), generator=generator("order", seed, epoch))
        if not self.group_by_length:
            return list(order.split(batch_size))
        lengths = self.lengths.cpu()
        steps: list[Tensor] = []
        for some in order.split(_BATCHES_TOGETHER * batch_size):
            by_length = lengths[some].sort(descending=True, stable=True).indices
            steps += some[by_length].split(batch_size)
        # the smaller batch that is left over stays the last one
        full = len(self) // batch_size
        shuffled = torch.randperm(full, generator=generator("batches", seed, epoch)).tolist()
        return [steps[step] for step in shuffled] + steps[full:]

    def _batch(self, index: Tensor) -> Batch:
        here = index.to(self.rows.device)
        rows, targets = self.rows[here], self.targets[here]
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        longest = int(lengths.max())
        place = torch.arange(longest, device=rows.device)
        within = place < lengths[:, None]
        flat = torch.where(within, starts[:, None] + place, starts[:, None])
        inputs: Inputs = {
            name: torch.where(within, column[flat].long(), self.padding[name]).to(self.device)
            for name, column in self.columns.items()
        }
        if self.masked:
            inputs = {**inputs, "attention_mask": within.long().to(self.device)}
        if self.decoder_start is not None:
            targets = targets[:, : int((targets != IGNORED).sum(dim=1).max())].long()
            before = torch.full_like(targets, self.decoder_start)
            before[:, 1:] = targets[:, :-1].where(targets[:, :-1] != IGNORED, self.padding["input_ids"])
            inputs = {**inputs, "decoder_input_ids": before.to(self.device)}
        elif self.of_tokens:
            targets = targets[:, :longest].long()
        weights = None if self.weights is None else self.weights[here].to(self.device)
        if self.token_weights is not None:  # of what is no row, any
            weights = self.token_weights[targets.clamp_min(0)].to(self.device)
        return Batch(inputs, targets.to(self.device), index.to(self.device), 0, weights)


def split_fingerprint(split: TextSplit) -> str:
    """Of the tokens, lengths, targets and weights of all samples in order, and of how batches are made of them."""
    options = sorted(split.padding.items()), split.masked, split.group_by_length, list(split.targets.shape)
    options = options if split.masking is None else (*options, split.masking)
    options = options if split.decoder_start is None else (*options, split.decoder_start)
    digest = hashlib.sha256(repr(options).encode())
    for tensor in (split.lengths, split.targets, split.weights, split.token_weights):
        for part in () if tensor is None else tensor.split(max(1, _AT_ONCE // max(1, tensor[:1].numel()))):
            digest.update(part.contiguous().numpy().data)
    lengths = split.lengths
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    first = 0
    while first < len(split):
        last = int(torch.searchsorted(bounds, bounds[first] + _AT_ONCE, right=True)) - 1
        last = max(first + 1, last)
        place = torch.arange(int(bounds[last] - bounds[first]))
        shift = split.offsets[split.rows[first:last]] - (bounds[first:last] - bounds[first])
        flat = place + shift.repeat_interleave(lengths[first:last])
        for column in split.columns.values():
            digest.update(column[flat].numpy().data)
        first = last
    return digest.hexdigest()[:16]


def padded(columns: Tensor, offsets: Tensor) -> Tensor:
    """[N, L] of values [T] one sample after the other, -100 where a sample is shorter than the longest."""
    lengths = offsets.diff()
    found = torch.full((len(lengths), int(lengths.max()) if len(lengths) else 0), IGNORED, dtype=torch.int32)
    place = torch.arange(found.shape[1])
    found[place < lengths[:, None]] = columns[: int(offsets[-1])]
    return found

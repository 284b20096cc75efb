"""A table whose rows are asked for unequally often: groups of them, each with a low-rank decomposition of its own.

Chen et al., GroupReduce: Block-Wise Low-Rank Approximation for Neural Language Model Shrinking, NeurIPS 2018
(arXiv:1806.06950), section 3.2: with rows in groups by frequency, the common ones, which are few, get a high rank at a
small price, and the many rare ones a low one.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compresskd.tt.decompose.metric import Metric

RATIO = 3  # of the rows of a group and all more frequent ones to those of the groups before it
MOST_GROUPS = 16


def groups_of(frequency: Tensor, num_groups: int) -> Tensor:
    """The group [V] of each row, 0 the most frequent: the last two thirds of the rows, two thirds of the others, ...

    Fewer groups where there are few rows; rows of equal frequency come in their order.
    """
    order = frequency.argsort(descending=True, stable=True)
    bounds = {len(order) // RATIO**k for k in range(1, num_groups)} - {0}
    group = torch.zeros(len(order), dtype=torch.int64, device=frequency.device)
    for bound in bounds:
        group[order[bound:]] += 1
    return group


@dataclass(frozen=True)
class Table:
    """A table [V, D], the group [V] of each row, and the metric of its errors, whose outputs count row by row."""

    weight: Tensor
    group: Tensor
    metric: Metric

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each group."""
        return tuple(self.group.bincount().tolist())

    @cached_property
    def _directions(self) -> list[tuple[Tensor, Tensor]]:
        """Of each group the squared singular values [D], falling, and right singular vectors [D, D], whitened."""
        whitened, found = self.metric.whitened(self.weight.double()), []
        for k in range(len(self.counts)):
            rows = whitened[self.group == k]
            values, vectors = torch.linalg.eigh(rows.T @ rows)
            found.append((values.flip(0).clamp(min=0.0), vectors.flip(1)))
        return found

    @cached_property
    def total(self) -> float:
        """The cost of the table itself."""
        return float(sum(values.sum() for values, _ in self._directions))

    def cost_of(self, ranks: Sequence[int]) -> float:
        """What the error costs at these ranks."""
        return float(sum(v[r:].sum() for (v, _), r in zip(self._directions, ranks, strict=True)))

    def size_of(self, ranks: Sequence[int]) -> int:
        """Parameters of all factors."""
        return sum(r * (count + self.weight.shape[1]) for r, count in zip(ranks, self.counts, strict=True))

    def steps(self) -> Iterator[tuple[int, ...]]:
        """Ranks from all 1 to full ones, each a step of one rank that gains the most for a parameter."""
        width = self.weight.shape[1]
        most = [min(count, width) for count in self.counts]
        ranks = [1] * len(most)
        yield tuple(ranks)

        def gain(k: int) -> float:
            return float(self._directions[k][0][ranks[k]]) / (self.counts[k] + width)

        queue = [(-gain(k), k) for k in range(len(most)) if ranks[k] < most[k]]
        heapq.heapify(queue)
        while queue:
            _, k = heapq.heappop(queue)
            ranks[k] += 1
            yield tuple(ranks)
            if ranks[k] < most[k]:
                heapq.heappush(queue, (-gain(k), k))

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Rows [V_k, r_k] and basis [r_k, D] of each group in turn, of equal norms by rank, in the table's dtype."""
        weight, found = self.weight.double(), []
        root = self.metric.input_root
        for k, r in enumerate(ranks):
            vectors = self._directions[k][1][:, :r]
            whitened = weight[self.group == k] if root is None else root.times(weight[self.group == k])
            rows, basis = whitened @ vectors, vectors.T if root is None else root.divides(vectors.T)
            share = (rows.norm(dim=0) / basis.norm(dim=1)).clamp(min=1e-12).sqrt()
            found += [rows / share, basis * share[:, None]]
        return [factor.to(self.weight.dtype).contiguous() for factor in found]

"""The value of a term where a batch is spread over processes: each computes its share, which add up to the whole.

A term says by `mean_over` what it is a mean of:

- ``rows`` (where it says nothing): of rows that are judged one by one; a term on targets weighs them by the weights
  of the rows, where they have some.
- ``pairs``: the term weighs its share of each pair of features itself (`shared_pairs`).
- ``batch``: it compares samples with each other, so that it is given those of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compresskd.distributed import Group, of_batch
from compresskd.tasks import ModelOutputs

ROWS, PAIRS, BATCH = "rows", "pairs", "batch"
Views = Mapping[str, tuple[ModelOutputs, ModelOutputs | None]]


def shares_of(terms: Mapping[str, Any], views: Views, group: Group) -> dict[str, Any]:
    """The factor of what each term says in this process, by its name."""
    shares: dict[str, Any] = {n: 1 / group.world if _mean_over(t) == BATCH else 1.0 for n, t in terms.items()}
    by_rows = [name for name, term in terms.items() if _mean_over(term) == ROWS]
    counts = [_count(terms[name], views[name][0]) for name in by_rows]
    return shares | dict(zip(by_rows, _shares(counts, group), strict=True))


def value_of(
    term: Any, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor, group: Group
) -> Tensor:
    """What a term says, of the samples of all processes where it compares these with each other."""
    if group.world > 1 and _mean_over(term) == BATCH:
        of_all = None if teacher is None else _of_all(teacher, group)
        return term(_of_all(student, group), of_all, group.rows(targets))
    if group.world > 1 and not len(student.logits) and _mean_over(term) == ROWS:
        return (
            student.logits.float().sum() * 0
        )  # no row of this share counts: the mean over none is no number
    return term(student, teacher, targets)


def shared_pairs(
    losses: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]], mask: Tensor | None
) -> list[Tensor]:
    """The losses of pairs of features, each times its share: of the samples, of tokens of those that are no padding."""
    group = of_batch()
    if group.world == 1:
        return list(losses)
    shares = _shares([_tokens(pair, mask) for pair in pairs], group)
    return [loss * share for loss, share in zip(losses, shares, strict=True)]


def _tokens(pair: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor | None:
    if mask is not None and all(x.ndim == 3 and x.shape[:2] == mask.shape for x in pair):
        return mask.sum().float()
    return None


def _shares(counts: Sequence[Tensor | None], group: Group) -> list[Any]:
    """What part of each sum of counts this process has; where samples are counted (None) the batch tells it."""
    asked = [count for count in counts if count is not None] if group.world > 1 else []
    told = iter(group.shares(torch.stack(asked)) if asked else ())
    return [group.part if count is None or group.world == 1 else next(told) for count in counts]


def _mean_over(term: Any) -> str:
    return getattr(term, "mean_over", ROWS)


def _count(term: Any, student: ModelOutputs) -> Tensor | None:
    weights = student.weights if getattr(term, "kind", "") == "targets" else None
    if weights is not None:
        return weights.sum()
    if student.sample is None:
        return None
    return student.logits.new_tensor(len(student.logits), dtype=torch.float32)


def _of_all(view: ModelOutputs, group: Group) -> ModelOutputs:
    return replace(
        view,
        logits=group.rows(view.logits),
        features={name: group.rows(feature) for name, feature in view.features.items()},
        mask=None if view.mask is None else group.rows(view.mask),
        sample=None,
        weights=None if view.weights is None else group.rows(view.weights),
    )

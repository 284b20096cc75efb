"""Terms on features: outputs of modules, ``[B, C]``, ``[B, L, C]`` (L tokens) or ``[B, C, H, W]``.

Which modules are compared is said by ``pairs`` (student module: teacher module) or else found by ``match``:

- ``same_name``: modules of one name on both sides, as between a model and its tensor-train form. Without
  ``include`` the outermost ones (a block counts, not the layers within); with it all whose name fits a
  pattern (``fnmatch``): ``["*"]`` takes every layer and block, ``["layer?", "*.conv2"]`` some.
- ``middle``, ``last``: of the outermost layers and blocks before the logits the middle or last of each side.
- ``layers``: the blocks that each side repeats, the student's spread evenly over the teacher's, and what enters the
  first of them, as the layer map of TinyBERT (Jiao et al. 2019, arXiv:1909.10351, section 3.1).

Losses are summed over pairs. Padding among the tokens counts for nothing. Every term computes in float32 and expects
both views keyed by the student's names, as :class:`compresskd.kd.objective.BoundObjective` gives them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.kd.extent import aligned, pooled
from compresskd.kd.outputs import teacher_of
from compresskd.kd.shares import BATCH, PAIRS, shared_pairs
from compresskd.options import NonNegative, OptionError, checked, one_of
from compresskd.tasks import ModelOutputs

Rule = Annotated[str, one_of("same_name", "middle", "last", "layers")]


@checked
@dataclass(frozen=True)
class Hint:
    """Mean squared difference of features, the student's through a projector where channels differ.

    FitNets: Hints for Thin Deep Nets (Romero et al. 2015, arXiv:1412.6550), equation 3, with the mean for
    the half sum and a joint training for the two stages; the customary weight is then 100 (Tian et al.
    2020, arXiv:1910.10699, supplement). Extents that differ are average-pooled to the smaller one. With ``match``
    layers and weight 1 these are the losses of hidden states and embeddings of TinyBERT (Jiao et al. 2019,
    arXiv:1909.10351, equations 8 and 9), with a projector for each block.
    """

    weight: NonNegative = 100.0
    pairs: Mapping[str, str] | None = None
    match: Rule = "middle"
    include: Sequence[str] | None = None
    kind: ClassVar[str] = "features"
    mean_over: ClassVar[str] = PAIRS
    projects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return over_pairs(self, student, teacher, lambda s, t, mask, _: F.mse_loss(*aligned(s, t, mask)))


@checked
@dataclass(frozen=True)
class AttentionTransfer:
    """Mean squared difference of normalized attention maps: over positions, the mean square of the channels.

    Paying More Attention to Attention (Zagoruyko & Komodakis 2017, arXiv:1612.03928), equation 2, p = 2, in
    the form of the published code, where the weight is 1000. Extents that differ are average-pooled to the
    smaller one. Features without an extent ``[B, C]`` have no such map.
    """

    weight: NonNegative = 1000.0
    pairs: Mapping[str, str] | None = None
    match: Rule = "same_name"
    include: Sequence[str] | None = None
    kind: ClassVar[str] = "features"
    mean_over: ClassVar[str] = PAIRS

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return over_pairs(self, student, teacher, _attention_distance)

    def fault(self, student: Tensor, teacher: Tensor) -> str | None:
        """Why two features cannot be compared, or None."""
        flat = next((x for x in (student, teacher) if x.ndim == 2), None)
        return (
            None
            if flat is None
            else (f"attention transfer expects [B, C, H, W] or [B, N, C], got {list(flat.shape)}")
        )


@checked
@dataclass(frozen=True)
class SimilarityPreserving:
    """``1 / B^2`` times the squared distance of the two batches' similarity matrices, rows normalized.

    Similarity-Preserving Knowledge Distillation (Tung & Mori 2019, arXiv:1907.09682), equations 1 to 4,
    where the weight is 3000. No projector is needed: the matrices are ``[B, B]``.
    """

    weight: NonNegative = 3000.0
    pairs: Mapping[str, str] | None = None
    match: Rule = "last"
    include: Sequence[str] | None = None
    kind: ClassVar[str] = "features"
    mean_over: ClassVar[str] = BATCH

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return over_pairs(
            self,
            student,
            teacher,
            lambda s, t, mask, _: F.mse_loss(_similarity(_without(s, mask)), _similarity(_without(t, mask))),
        )


@checked
@dataclass(frozen=True)
class RKD:
    """Huber distances between relations of samples: their mutual distances, and the angles of all triplets.

    Relational Knowledge Distillation (Park et al. 2019, arXiv:1904.05068), equations 5 to 10, means for
    sums; the published weights are 25 and 50. Embeddings are features averaged over positions. The angles
    take ``B^2 C + B^3`` numbers for a batch of B: at B 512 half a gigabyte.

    Raises:
        OptionError: if a weight is below 0.
    """

    weight: NonNegative = 1.0
    distance_weight: NonNegative = 25.0
    angle_weight: NonNegative = 50.0
    pairs: Mapping[str, str] | None = None
    match: Rule = "last"
    include: Sequence[str] | None = None
    kind: ClassVar[str] = "features"
    mean_over: ClassVar[str] = BATCH

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return over_pairs(self, student, teacher, self._relation)

    def _relation(self, s: Tensor, t: Tensor, mask: Tensor | None, name: str) -> Tensor:
        s_differences, t_differences = _differences(pooled(s, mask)), _differences(pooled(t, mask))
        loss = s.new_zeros(())
        if self.distance_weight:
            distances = F.smooth_l1_loss(_distances(s_differences), _distances(t_differences))
            loss = loss + self.distance_weight * distances
        if self.angle_weight:
            angles = F.smooth_l1_loss(_angles(s_differences), _angles(t_differences))
            loss = loss + self.angle_weight * angles
        return loss


def _check(term: Any) -> None:
    if term.include and (term.pairs or term.match != "same_name"):
        raise OptionError("include", term.include, "null, or match=same_name (which it narrows) and no pairs")


def over_pairs(
    term: Any,
    student: ModelOutputs,
    teacher: ModelOutputs | None,
    distance: Callable[[Tensor, Tensor, Tensor | None, str], Tensor],
) -> Tensor:
    """The sum over the pairs of a term of `distance(student's feature, teacher's, mask, student's module)`.

    Raises:
        ValueError: the two have features of other names than each other.
    """
    theirs = teacher_of(teacher, term).features
    if not student.features or student.features.keys() != theirs.keys():
        raise ValueError(
            f"{type(term).__name__}: expected features of the same names on both sides, got "
            f"{list(student.features)} and {list(theirs)}; call a bound objective (Objective.bind)"
        )
    pairs = {name: (s.float(), theirs[name].detach().float()) for name, s in student.features.items()}
    losses = [distance(*pair, student.mask, name) for name, pair in pairs.items()]
    if getattr(term, "mean_over", None) == PAIRS:
        losses = shared_pairs(losses, list(pairs.values()), student.mask)
    return torch.stack(losses).sum()


def _without(feature: Tensor, mask: Tensor | None) -> Tensor:
    """The feature with zeros in the place of padding."""
    if mask is None or feature.ndim != 3 or feature.shape[:2] != mask.shape:
        return feature
    return feature * mask[..., None]


def _attention_distance(s: Tensor, t: Tensor, mask: Tensor | None, name: str) -> Tensor:
    if mask is not None and s.ndim == t.ndim == 3 and s.shape[:2] == t.shape[:2] == mask.shape:
        maps = [F.normalize(_without(x, mask).square().mean(dim=2), dim=1) for x in (s, t)]
        return (maps[0] - maps[1]).square().sum() / mask.sum().clamp_min(1)
    s, t = aligned(s, t)
    maps = [x.square().mean(dim=1 if x.ndim == 4 else 2).flatten(1) for x in (s, t)]
    return F.mse_loss(F.normalize(maps[0], dim=1), F.normalize(maps[1], dim=1))


def _similarity(feature: Tensor) -> Tensor:
    rows = feature.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def _differences(embedding: Tensor) -> Tensor:
    """``[B, B, C]``: at j, i the way from sample j to sample i."""
    return embedding[None, :, :] - embedding[:, None, :]


def _distances(differences: Tensor) -> Tensor:
    """``[B, B]``: mutual distances over their mean."""
    # A root has no slope at 0: the diagonal, and samples that coincide, are kept out of it.
    squared = differences.square().sum(dim=-1)
    apart = squared > 0
    distances = torch.where(apart, squared, 1.0).sqrt() * apart
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def _angles(differences: Tensor) -> Tensor:
    """``[B, B, B]``: at j, i, k the cosine of the angle at j between i and k."""
    directions = F.normalize(differences, dim=-1)
    return directions @ directions.transpose(1, 2)

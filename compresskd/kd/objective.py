"""Training objectives: named weighted loss terms over a student, a teacher and the targets."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compresskd.distributed import of_batch
from compresskd.kd.capture import ActivationCapture
from compresskd.kd.logits import Temperature
from compresskd.kd.matching import FeatureMatch, match_features
from compresskd.kd.shares import shares_of, value_of
from compresskd.options import Fraction, OptionError, Positive, checked
from compresskd.tasks import CLASSES, LABELS, VALUES, VECTORS, Inputs, ModelOutputs, Task

_USUAL = {
    CLASSES: "soft_targets",
    LABELS: "bernoulli",
    VALUES: "squared_error",
    VECTORS: "vectors",
}  # in conf/kd


class Term(Protocol):
    """One loss: a frozen dataclass with a ``weight``, called with what both models said of a batch.

    A class attribute ``kind`` says what it compares the student with: ``"targets"`` (the labels; runs without
    a teacher), ``"logits"`` (the teacher's; taken where a class says nothing) or ``"features"`` (see
    :mod:`compresskd.kd.matching` for what such a term offers besides). One with ``needs_labels = True`` compares
    with the teacher by the labels, and so cannot be used on samples that have none. One that is no mean over rows
    says by ``mean_over`` what else it is (see :mod:`compresskd.kd.shares`), for batches that processes share.
    """

    @property
    def weight(self) -> float:
        """Factor of the term in the total, 0 or above."""
        ...

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor) -> Tensor:
        """The unweighted loss, a scalar in float32."""
        ...


@checked
@dataclass(frozen=True)
class Objective:
    """A weighted sum of named terms, times ``scale``.

    Terms of weight 0 are neither computed nor reported.

    Args:
        terms: at least one, not all of weight 0.
        scale: factor of the total. It lets ``alpha`` keep one meaning, the share of the teacher, where a
            paper adds its terms: ``alpha`` 0.5 at scale 2 is the plain sum.

    Raises:
        OptionError: if there is no term or no weight above 0, or a weight is negative.
    """

    terms: Mapping[str, Term]
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.terms:
            raise OptionError("terms", {}, "at least one term")
        for name, term in self.terms.items():
            if _kind(term) not in ("targets", "logits", "features"):
                raise OptionError(f"terms.{name}.kind", _kind(term), "targets, logits or features")
        _check_alpha(self.terms)
        for name, term in self.terms.items():
            if isinstance(term.weight, bool) or not (
                isinstance(term.weight, int | float) and term.weight >= 0
            ):
                raise OptionError(f"terms.{name}.weight", term.weight, "a number >= 0")
        if not self.active:
            raise OptionError("terms", list(self.terms), "a weight > 0 of one of them")

    @property
    def active(self) -> dict[str, Term]:
        """The terms of weight above 0."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    def faults(self, task: Task) -> Iterator[OptionError]:
        """A fault for each active term that does not fit what the task asks of a row."""
        for name, term in self.active.items():
            fits = getattr(term, "fits", None)
            if fits is not None and task.asks not in fits:
                expected = f"one for {task.asks}, as task {task.name} asks; this one is for {', '.join(fits)}"
                expected += f"; write kd={_USUAL[task.asks]}" if task.asks in _USUAL else ""
                yield OptionError(f"terms.{name}", type(term).__name__, expected)
            if task.targets_of_teacher and _kind(term) == "targets":
                expected = f"none for task {task.name}, which has no labels; write kd={_USUAL[task.asks]}"
                yield OptionError(f"terms.{name}", type(term).__name__, expected)
            smoothing = getattr(term, "label_smoothing", 0)
            if task.asks in (VALUES, VECTORS) and smoothing:
                expected = f"0 for task {task.name}: its targets are no classes"
                yield OptionError(f"terms.{name}.label_smoothing", smoothing, expected)

    def unlabelled_faults(self) -> Iterator[OptionError]:
        """A fault for each active term on the teacher that cannot do without the label of a sample."""
        for name, term in self.active.items():
            if getattr(term, "needs_labels", False):
                expected = "one that needs no labels beside samples without any; write kd=soft_targets"
                yield OptionError(f"terms.{name}", type(term).__name__, expected)

    def packed_faults(self) -> Iterator[OptionError]:
        """A fault for each active term on the teacher that needs all of its outputs."""
        for name, term in self.active.items():
            if _kind(term) != "targets" and not getattr(term, "takes_packed", False):
                expected = (
                    "one that does with the largest outputs of a teacher, such as that of kd=soft_targets"
                )
                expected += " without standardize; or write train.teacher_outputs=null"
                yield OptionError(f"terms.{name}", type(term).__name__, expected)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the terms that do with the largest outputs of a teacher."""
        packed = [term for term in self.active.values() if getattr(term, "takes_packed", False)]
        return tuple(sorted({float(getattr(term, "temperature", 1.0)) for term in packed}))

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term compares with a teacher."""
        return any(_kind(term) != "targets" for term in self.active.values())

    @property
    def needs_features(self) -> bool:
        """Whether any active term compares features; if none does, the teacher's logits suffice."""
        return any(_kind(term) == "features" for term in self.active.values())

    def __call__(
        self, student: ModelOutputs, teacher: ModelOutputs | None, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each unweighted term (detached, on the device: nothing waits for it)."""
        return self.over(dict.fromkeys(self.active, (student, teacher)), targets)

    def over(
        self,
        views: Mapping[str, tuple[ModelOutputs, ModelOutputs | None]],
        targets: Tensor,
        *,
        labelled: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As a call, with the views of each active term given by the term's name; unlabelled, without label terms.

        Of a batch that processes share, each gets what adds up to the value of the whole batch.
        """
        group, total, parts = of_batch(), None, {}
        terms = {n: term for n, term in self.active.items() if labelled or _kind(term) != "targets"}
        shares = shares_of(terms, views, group)
        for name, term in terms.items():
            student, teacher = views[name]
            with torch.autocast(student.logits.device.type, enabled=False):
                part = value_of(term, student, teacher, targets, group)
                part = part if group.world == 1 else part * shares[name]
                weighted = self.scale * term.weight * part
                total = weighted if total is None else total + weighted
            parts[name] = part.detach()
        assert total is not None
        return total, parts

    @checked
    def reweighted(
        self, *, alpha: Fraction | None = None, temperature: Temperature | None = None
    ) -> "Objective":
        """The same terms, balanced anew; for stages that differ in ``alpha`` or ``temperature``.

        Args:
            alpha: the terms on targets get weight ``1 - alpha``, those on the teacher's logits ``alpha``;
                those on features keep theirs.
            temperature: of every term on the teacher's logits that has one.

        Raises:
            ValueError: if a value is out of range, or no term is there to take it.
        """
        terms = dict(self.terms)
        if alpha is not None:
            kinds = {_kind(term) for term in terms.values()}
            if not {"targets", "logits"} <= kinds:
                expected = (
                    "null, or terms on targets and on the teacher's logits to balance (kd=soft_targets)"
                )
                raise OptionError("alpha", alpha, f"{expected}, not {', '.join(terms)}")
            share = {"targets": 1 - alpha, "logits": alpha}
            terms = {
                name: _replaced(term, weight=share[_kind(term)]) if _kind(term) in share else term
                for name, term in terms.items()
            }
        if temperature is not None:
            softened = [n for n, t in terms.items() if _kind(t) == "logits" and hasattr(t, "temperature")]
            if not softened:
                expected = f"null, or a term with a temperature (kd=soft_targets), not {', '.join(terms)}"
                raise OptionError("temperature", temperature, expected)
            terms |= {name: _replaced(terms[name], temperature=temperature) for name in softened}
        return replace(self, terms=terms)

    def bind(self, student: nn.Module, teacher: nn.Module | None, example: Inputs) -> "BoundObjective":
        """Fits the objective to two models: finds the modules to tap, makes projectors where channels differ.

        Both models run once on ``example``, in eval mode without gradient; nothing of them changes.
        Projectors draw from torch's global random state.

        Args:
            student: the model to be trained.
            teacher: may be None if ``needs_teacher`` is False.
            example: one or two inputs, on the device of the models.

        Raises:
            ValueError: if the teacher is missing, the two differ in classes, or modules do not fit.
        """
        if not self.needs_teacher:
            return BoundObjective(self, {})
        if teacher is None:
            needing = ", ".join(name for name, term in self.active.items() if _kind(term) != "targets")
            raise ValueError(f"{needing} compares with a teacher, got none; write kd=none to do without")
        terms = {name: term for name, term in self.active.items() if _kind(term) == "features"}
        # among the classes of a softmax, one alone leaves nothing to be told apart
        least = 2 if any(getattr(term, "fits", None) == (CLASSES,) for term in self.active.values()) else 1
        return BoundObjective(self, match_features(terms, student, teacher, example, least=least))


@dataclass(frozen=True)
class CapturedPair:
    """The two models of an attached objective: turns what each returned into a :class:`ModelOutputs`."""

    student_capture: ActivationCapture
    teacher_capture: ActivationCapture

    def student(self, output: Any) -> ModelOutputs:
        """ModelOutputs of the student's last forward pass; ``output`` is what it returned."""
        return self.student_capture.view(output)

    def teacher(self, output: Any) -> ModelOutputs:
        """ModelOutputs of the teacher's last forward pass, without gradient; ``output`` may be cached logits."""
        return self.teacher_capture.view(output)


class BoundObjective(nn.Module):
    """An objective fitted to a student and a teacher. A module: its parameters are those of the projectors.

    It holds neither model. Usage::

        bound = objective.bind(student, teacher, example)
        optimizer = SGD([*student.parameters(), *bound.parameters()], lr=0.1)
        with bound.attached(student, teacher) as captured:
            for batch in batches:
                with torch.no_grad():
                    teacher_view = captured.teacher(teacher(batch.inputs))
                student_view = captured.student(student(batch.inputs))
                loss, parts = bound(student_view, teacher_view, batch.targets)
    """

    def __init__(self, objective: Objective, matches: Mapping[str, FeatureMatch]) -> None:
        super().__init__()
        self.objective = objective
        self.matches = nn.ModuleDict(matches)
        pairs = {name: match.pairs for name, match in matches.items()}
        self.pairs: dict[str, dict[str, str]] = pairs
        self.student_capture = tuple(dict.fromkeys(s for names in pairs.values() for s in names))
        self.teacher_capture = tuple(dict.fromkeys(t for names in pairs.values() for t in names.values()))

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's view has to be given."""
        return self.objective.needs_teacher

    @property
    def needs_features(self) -> bool:
        """Whether the teacher itself has to run; if not, its logits may come from a cache."""
        return self.objective.needs_features

    @contextmanager
    def attached(self, student: nn.Module, teacher: nn.Module | None = None) -> Iterator[CapturedPair]:
        """Forward hooks on both models while the context lasts; none where only logits are compared."""
        student_capture, teacher_capture = (
            ActivationCapture(self.student_capture),
            ActivationCapture(self.teacher_capture, detach=True),
        )
        with student_capture.attached(student), teacher_capture.attached(teacher):
            yield CapturedPair(student_capture, teacher_capture)

    def forward(
        self,
        student: ModelOutputs,
        teacher: ModelOutputs | None,
        targets: Tensor,
        *,
        labelled: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (float32 scalar, differentiable) and each unweighted term (detached)."""
        views = {}
        for name in self.objective.active:
            if name not in self.matches:
                views[name] = (student, teacher)
                continue
            if teacher is None:
                raise ValueError(
                    f"kd: {name} compares features with a teacher's: expected its ModelOutputs, got None"
                )
            with torch.autocast(student.logits.device.type, enabled=False):
                views[name] = self.matches[name](student, teacher)
        return self.objective.over(views, targets, labelled=labelled)


def _kind(term: Term) -> str:
    return getattr(term, "kind", "logits")


def _replaced(term: Any, **changes: float) -> Any:
    return replace(term, **changes)


def _check_alpha(terms: Mapping[str, Term]) -> None:
    """Weights 1 - alpha and alpha come from one key: name that one where it is out of range."""
    if not all(isinstance(term.weight, int | float) for term in terms.values()):
        return
    hard = [term.weight for term in terms.values() if _kind(term) == "targets"]
    soft = {name: term.weight for name, term in terms.items() if _kind(term) == "logits"}
    if len(hard) == len(soft) == 1 and abs(hard[0] + sum(soft.values()) - 1) < 1e-9:
        name, alpha = next(iter(soft.items()))
        if not 0 <= alpha <= 1:
            raise OptionError(f"terms.{name}.weight", alpha, ">= 0 and <= 1")

"""Which module of the student is compared with which of the teacher, and the projectors between them.

A term on features offers, besides its call: ``pairs`` (student module: teacher module), ``match`` (a rule that
finds the pairs), ``include`` (patterns that narrow it); optionally ``projects = True`` if it compares channel by
channel, and ``fault(student_feature, teacher_feature) -> str | None``, why two features cannot be compared.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.kd.projector import projector
from compresskd.kd.taps import Taps
from compresskd.kd.view import View


class FeatureMatch(nn.Module):
    """The pairs of one term, resolved, with their projectors.

    Args:
        pairs: student module: teacher module.
        projectors: by student module, where channels differ.
    """

    def __init__(self, pairs: Mapping[str, str], projectors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.pairs = dict(pairs)
        # A module's name may not contain dots.
        self.projectors = nn.ModuleDict({_key(name): module for name, module in projectors.items()})

    def forward(self, student: View, teacher: View) -> tuple[View, View]:
        """Views of the paired features alone, both keyed by the student's names, the student's projected."""
        ours = {}
        for name in self.pairs:
            feature = student.features[name]
            if _key(name) in self.projectors:
                feature = self.projectors[_key(name)](feature.float())
            ours[name] = feature
        theirs = {s: teacher.features[t] for s, t in self.pairs.items()}
        return View(student.logits, ours), View(teacher.logits, theirs)


@dataclass(frozen=True)
class Probe:
    """What one forward pass showed of a model.

    Args:
        model: the model.
        logits: what it returned, ``[B, K]``.
        outputs: of every module that ran, by name, in the order in which they finished.
    """

    model: nn.Module
    logits: Tensor
    outputs: dict[str, Tensor]

    def candidates(self) -> list[str]:
        """Modules worth comparing: layers that own a matrix and blocks of such; the one giving the logits is not."""
        names, layers = [], []
        for name, module in self.model.named_modules():
            inside = any(name.startswith(f"{layer}.") for layer in layers)
            if not name or inside or not any(p.ndim > 1 for p in module.parameters()):
                continue
            if _owns_matrix(module):
                layers.append(name)
            output = self.outputs.get(name)
            if output is not None and output is not self.logits and output.shape[0] == self.logits.shape[0]:
                names.append(name)
        return names

    def last(self) -> str | None:
        """The outermost candidate that finished last."""
        candidates = _outermost(self.candidates())
        return next((name for name in reversed(self.outputs) if name in candidates), None)


def match_features(
    terms: Mapping[str, Any], student: nn.Module, teacher: nn.Module, example: Tensor
) -> dict[str, FeatureMatch]:
    """Resolves the pairs of each term on features against one forward pass of both models.

    Raises:
        ValueError: naming the config key, if classes differ, a module is unknown or does not fit, or none matches.
    """
    ours, theirs = _probe(student, example), _probe(teacher, example)
    if ours.logits.shape != theirs.logits.shape:
        raise ValueError(
            "student, teacher: expected logits of one shape, got "
            f"{list(ours.logits.shape)} from the student, {list(theirs.logits.shape)} from the teacher"
        )
    return {name: _matched(f"kd.objective.terms.{name}", term, ours, theirs) for name, term in terms.items()}


def _matched(key: str, term: Any, ours: Probe, theirs: Probe) -> FeatureMatch:
    pairs = _explicit(key, term, ours, theirs) if term.pairs else _found(key, term, ours, theirs)
    projectors = {}
    if getattr(term, "projects", False):
        for s, t in pairs.items():
            module = projector(ours.outputs[s], theirs.outputs[t])
            if module is not None:
                projectors[s] = module
    return FeatureMatch(pairs, projectors)


def _explicit(key: str, term: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    for s, t in term.pairs.items():
        for side, name, probe in (("student", s, ours), ("teacher", t, theirs)):
            _check_name(f"{key}.pairs", side, name, probe)
        fault = _fault(term, ours.outputs[s], theirs.outputs[t])
        if fault:
            raise ValueError(f"{key}.pairs: {s}: {t}: {fault}")
    return dict(term.pairs)


def _check_name(key: str, side: str, name: str, probe: Probe) -> None:
    if name in probe.outputs:
        return
    if name in dict(probe.model.named_modules()):
        raise ValueError(
            f"{key}: {name}: expected a module that runs in forward and returns a tensor; it does not"
        )
    nearest = difflib.get_close_matches(name, probe.outputs, n=1, cutoff=0.0)
    hint = f"; nearest is {nearest[0]}" if nearest else ""
    raise ValueError(f"{key}: expected the name of a module of the {side}, got {name!r}{hint}")


def _found(key: str, term: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    if term.match == "last":
        s, t = ours.last(), theirs.last()
        pairs = {s: t} if s is not None and t is not None else {}
    else:
        pairs = _same_name(term.include, ours, theirs)
    faults = {s: _fault(term, ours.outputs[s], theirs.outputs[t]) for s, t in pairs.items()}
    fitting = {s: t for s, t in pairs.items() if not faults[s]}
    if fitting:
        return fitting
    why = "; ".join(f"{s}: {fault}" for s, fault in faults.items()) or "no module fits"
    raise ValueError(
        f"{key}.match: {term.match!r} finds nothing to compare: {why}. Write pairs={{student_module: "
        f"teacher_module}}; the student has {_some(ours)}, the teacher {_some(theirs)}"
    )


def _same_name(include: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    common = [
        name for name in theirs.candidates() if name in ours.outputs and ours.outputs[name] is not ours.logits
    ]
    if not include:
        return {name: name for name in _outermost(common)}
    return {name: name for name in common if any(fnmatchcase(name, pattern) for pattern in include)}


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _fault(term: Any, s: Tensor, t: Tensor) -> str | None:
    for feature in (s, t):
        if feature.ndim not in (2, 3, 4):
            return f"expected an output [B, C], [B, N, C] or [B, C, H, W], got {list(feature.shape)}"
    return term.fault(s, t) if hasattr(term, "fault") else None


def _some(probe: Probe) -> str:
    names = probe.candidates()
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _owns_matrix(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    for child in module.children():
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            own.extend(child.parameters())
    return any(p.ndim > 1 for p in own)


def _probe(model: nn.Module, example: Tensor) -> Probe:
    modes = {module: module.training for module in model.modules()}
    taps = Taps(
        [name for name, _ in model.named_modules() if name and "parametrizations" not in name.split(".")]
    )
    try:
        model.eval()
        with torch.no_grad(), taps.attached(model):
            output = model(example)
            return Probe(model, getattr(output, "logits", output), taps.partial())
    finally:
        for module, mode in modes.items():
            module.training = mode


def _key(name: str) -> str:
    return name.replace(".", "/")

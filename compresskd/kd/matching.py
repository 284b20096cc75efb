"""Which module of the student is compared with which of the teacher, and the projectors between them.

A term on features offers, besides its call:

- ``pairs``: student module: teacher module, or None;
- ``match``: the rule that finds them then, as :mod:`compresskd.kd.features` explains;
- ``include``: patterns that narrow ``match: same_name``, or None;
- optionally ``projects = True``, if it compares channel by channel;
- optionally ``fault(student_feature, teacher_feature) -> str | None``: why two features cannot be compared.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from compresskd.kd.probe import Probe, outermost, probe
from compresskd.kd.projections import projections
from compresskd.kd.projector import projector
from compresskd.options import OptionError, within
from compresskd.tasks import Inputs, ModelOutputs


class FeatureMatch(nn.Module):
    """The pairs of one term, resolved, with their projectors.

    Args:
        pairs: student module: teacher module.
        projectors: by student module, where channels differ.
    """

    def __init__(self, pairs: Mapping[str, str], projectors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.pairs = dict(pairs)
        self.projectors = nn.ModuleDict({_key(name): module for name, module in projectors.items()})

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> tuple[ModelOutputs, ModelOutputs]:
        """Views of the paired features alone, both keyed by the student's names, the student's projected."""
        ours = {}
        for name in self.pairs:
            feature = student.features[name]
            if _key(name) in self.projectors:
                feature = self.projectors[_key(name)](feature.float())
            ours[name] = feature
        theirs = {s: teacher.features[t] for s, t in self.pairs.items()}
        return replace(student, features=ours), replace(teacher, features=theirs)


def match_features(
    terms: Mapping[str, Any], student: nn.Module, teacher: nn.Module, example: Inputs, *, least: int = 1
) -> dict[str, FeatureMatch]:
    """Resolves the pairs of each term on features against one forward pass of both models.

    Raises:
        ValueError: if the two differ in classes or have fewer than `least`, or naming the config key, if a module is
        unknown or does not fit.
    """
    ours, theirs = probe(student, example), probe(teacher, example)
    if ours.logits.shape != theirs.logits.shape:
        raise ValueError(
            "student, teacher: expected logits of one shape, got "
            f"{list(ours.logits.shape)} from the student, {list(theirs.logits.shape)} from the teacher"
        )
    if ours.logits.shape[-1] < least:
        raise ValueError(
            f"student, teacher: got logits {list(ours.logits.shape)}; to compare the two takes two classes or more; "
            "write kd=none, or data with more classes"
        )
    return {name: _matched(name, term, ours, theirs) for name, term in terms.items()}


def _matched(term_name: str, term: Any, ours: Probe, theirs: Probe) -> FeatureMatch:
    with within(f"terms.{term_name}"):
        pairs = (_explicit if term.pairs else _found)(term, ours, theirs)
    projectors = {}
    if getattr(term, "projects", False):
        for s, t in pairs.items():
            module = projector(ours.outputs[s], theirs.outputs[t])
            if module is not None:
                projectors[s] = module
    return FeatureMatch(pairs, projectors)


def _explicit(term: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    for s, t in term.pairs.items():
        ours.check_name("student", s)
        theirs.check_name("teacher", t)
        fault = _fault(term, ours.outputs[s], theirs.outputs[t], len(ours.logits))
        if fault:
            raise OptionError("pairs", {s: t}, f"features that fit: {fault}")
    return dict(term.pairs)


def _found(term: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    if term.match == "same_name":
        pairs = _same_name(term.include, ours, theirs)
    elif term.match == "layers":
        pairs = _by_layer(ours, theirs)
    elif term.match == "attention":
        pairs = _by_projection(term.block, ours, theirs)
    else:
        pairs = _by_position(term.match, ours.trunk(), theirs.trunk())
    faults = {s: _fault(term, ours.outputs[s], theirs.outputs[t], len(ours.logits)) for s, t in pairs.items()}
    fitting = {s: t for s, t in pairs.items() if not faults[s]}
    if fitting:
        return fitting
    why = "; ".join(f"{s}: {fault}" for s, fault in faults.items()) or "no module fits"
    there = f"the student has {_some(ours)}, the teacher {_some(theirs)}"
    if term.match == "attention":  # nobody's choice
        expected = (
            f"{{student_module: teacher_module}} of projections to queries, keys and values: {why}; {there}"
        )
        raise OptionError("pairs", None, expected)
    expected = f"a rule that finds something to compare ({why}), or pairs={{student_module: teacher_module}}"
    raise OptionError("match", term.match, f"{expected}; {there}")


def _same_name(include: Any, ours: Probe, theirs: Probe) -> dict[str, str]:
    common = [
        name for name in theirs.candidates() if name in ours.outputs and ours.outputs[name] is not ours.logits
    ]
    if not include:
        return {name: name for name in outermost(common)}
    return {name: name for name in common if any(fnmatchcase(name, pattern) for pattern in include)}


def _by_position(rule: str, ours: list[str], theirs: list[str]) -> dict[str, str]:
    if not ours or not theirs:
        return {}
    s, t = (names[len(names) // 2] if rule == "middle" else names[-1] for names in (ours, theirs))
    return {s: t}


def _by_layer(ours: Probe, theirs: Probe) -> dict[str, str]:
    """Block m of M to block m N / M of N, both counted from 1, of each stack; before them what enters the first."""
    pairs = {}
    stacks, others = ours.stacks(), theirs.stacks()
    if len(stacks) != len(others):
        stacks, others = stacks[:1], others[:1]
    for mine, other in zip(stacks, others, strict=True):
        entering = ours.entering(mine[0]), theirs.entering(other[0])
        if entering[0] and entering[1]:
            pairs[entering[0]] = entering[1]
        for number, block in enumerate(mine, 1):
            pairs[block] = other[max(1, round(number * len(other) / len(mine))) - 1]
    return pairs


def _by_projection(block: int, ours: Probe, theirs: Probe) -> dict[str, str]:
    """The projections of the student's last block, and of one block of the teacher."""
    stacks, others = ours.stacks(), theirs.stacks()
    if not stacks or not others:
        return {}
    if block >= len(others[0]):
        raise OptionError("block", block, f"a block of the teacher: 0 to {len(others[0]) - 1}, or -1")
    mine = projections(ours.outputs, stacks[0][-1])
    other = projections(theirs.outputs, others[0][block])
    return dict(zip(mine, other, strict=True)) if len(mine) == len(other) else {}


def _fault(term: Any, s: Tensor, t: Tensor, batch: int) -> str | None:
    for feature in (s, t):
        if feature.ndim not in (2, 3, 4) or len(feature) != batch:
            return f"expected [B, C], [B, N, C] or [B, C, H, W] with B={batch}, got {list(feature.shape)}"
    return term.fault(s, t) if hasattr(term, "fault") else None


def _some(side: Probe) -> str:
    names = side.candidates()
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _key(name: str) -> str:
    # The name of a submodule may not contain dots.
    return name.replace(".", "/")

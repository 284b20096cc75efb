"""Proof by trial that layers in another form do what the layers did in whose place they stand."""

from compresskd.proof.comparison import differing
from compresskd.proof.guard import read_by_others
from compresskd.proof.passes import sharing
from compresskd.proof.rounded import differing_when_rounded
from compresskd.proof.twins import carrying

__all__ = ["carrying", "differing", "differing_when_rounded", "read_by_others", "sharing"]

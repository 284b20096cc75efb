"""Tensor-train layers, and the decompositions that make them out of dense ones."""

from compresskd.tt.conv import TTConv2d
from compresskd.tt.factorize import factorize
from compresskd.tt.linear import TTLinear
from compresskd.tt.skipped import Skipped
from compresskd.tt.structure import from_structure

__all__ = ["Skipped", "TTConv2d", "TTLinear", "factorize", "from_structure"]

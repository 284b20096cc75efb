"""Tensor-train layers, the decompositions that make them out of dense ones, and the plans by which they run."""

from compresskd.tt.decompose.modes import Modes
from compresskd.tt.decompose.search import Candidate, CurvePoint
from compresskd.tt.decompose.skipped import Skipped
from compresskd.tt.execution.cached_operands import constant_weights
from compresskd.tt.execution.policy import FIXED, MEASURED, plans
from compresskd.tt.factorize import (
    METHODS,
    candidates,
    empty_form,
    error_curve,
    factorize,
    refusal,
    smallest_forms,
)
from compresskd.tt.layers.base import WeightDescription
from compresskd.tt.layers.conv import TTConv2d
from compresskd.tt.layers.conv1d import CPConv1d, TTConv1d, two_dimensional
from compresskd.tt.layers.cp import CPConv2d, CPLinear
from compresskd.tt.layers.embedding import TTEmbedding
from compresskd.tt.layers.grouped import GroupedEmbedding
from compresskd.tt.layers.interpolative import InterpolativeLinear
from compresskd.tt.layers.linear import TTLinear
from compresskd.tt.layers.ordinary import ordinary
from compresskd.tt.layers.structure import from_structure
from compresskd.tt.layers.tucker import TuckerLinear
from compresskd.tt.layers.twin import twin

__all__ = [
    "FIXED",
    "MEASURED",
    "METHODS",
    "CPConv1d",
    "CPConv2d",
    "CPLinear",
    "Candidate",
    "CurvePoint",
    "GroupedEmbedding",
    "InterpolativeLinear",
    "Modes",
    "Skipped",
    "TTConv1d",
    "TTConv2d",
    "TTEmbedding",
    "TTLinear",
    "TuckerLinear",
    "WeightDescription",
    "candidates",
    "constant_weights",
    "empty_form",
    "error_curve",
    "factorize",
    "from_structure",
    "ordinary",
    "plans",
    "refusal",
    "smallest_forms",
    "twin",
    "two_dimensional",
]

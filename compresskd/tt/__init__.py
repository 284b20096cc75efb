"""Tensor-train layers, the decompositions that make them out of dense ones, and the plans by which they run."""

from compresskd.tt.conv import TTConv2d
from compresskd.tt.cp import CPConv2d, CPLinear
from compresskd.tt.embedding import TTEmbedding
from compresskd.tt.factorize import candidates, error_curve, factorize, least_parameters, refusal
from compresskd.tt.linear import TTLinear
from compresskd.tt.modes import Modes
from compresskd.tt.ordinary import ordinary
from compresskd.tt.policy import FIXED, MEASURED, plans
from compresskd.tt.search import Candidate, CurvePoint
from compresskd.tt.skipped import Skipped
from compresskd.tt.structure import from_structure
from compresskd.tt.tucker import TuckerLinear
from compresskd.tt.twin import twin

__all__ = [
    "FIXED",
    "MEASURED",
    "CPConv2d",
    "CPLinear",
    "Candidate",
    "CurvePoint",
    "Modes",
    "Skipped",
    "TTConv2d",
    "TTEmbedding",
    "TTLinear",
    "TuckerLinear",
    "candidates",
    "error_curve",
    "factorize",
    "from_structure",
    "least_parameters",
    "ordinary",
    "plans",
    "refusal",
    "twin",
]

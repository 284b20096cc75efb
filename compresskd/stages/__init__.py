"""The steps that strategies are made of, one a file; a strategy's YAML names them by `_target_`."""

from compresskd.compression.compression import Compression
from compresskd.compression.quantization import Quantization
from compresskd.stages.admm import Admm
from compresskd.stages.factorize import Factorize
from compresskd.stages.fit import Fit
from compresskd.stages.fit_blocks import FitBlocks
from compresskd.stages.fit_layers import FitLayers
from compresskd.stages.matched_dense import MatchedDense
from compresskd.stages.multi_stage import MultiStage
from compresskd.stages.quantize import Quantize

__all__ = [
    "Admm",
    "Compression",
    "Factorize",
    "Fit",
    "FitBlocks",
    "FitLayers",
    "MatchedDense",
    "MultiStage",
    "Quantization",
    "Quantize",
]

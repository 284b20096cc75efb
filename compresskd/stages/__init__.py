"""The steps that strategies are made of, one a file; a strategy's YAML names them by `_target_`."""

from compresskd.stages.factorize import Factorize
from compresskd.stages.fit import Fit

__all__ = ["Factorize", "Fit"]

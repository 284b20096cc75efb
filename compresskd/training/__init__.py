"""The only training loop of the package, and what it is made of.

A loss closure, a recipe and three splits go in; the model of the best validation epoch comes out.
Nothing here knows of teachers, ranks or bits.
"""

from compresskd.training.evaluation import Scores, evaluate
from compresskd.training.history import EpochRecord, FitResult, StepProgress
from compresskd.training.loop import fit
from compresskd.training.loss import LossOutput, NonFiniteLoss
from compresskd.training.recipe import LearningRate, Recipe
from compresskd.training.state import ResumeMismatch

__all__ = [
    "EpochRecord",
    "FitResult",
    "LearningRate",
    "LossOutput",
    "NonFiniteLoss",
    "Recipe",
    "ResumeMismatch",
    "Scores",
    "StepProgress",
    "evaluate",
    "fit",
]

"""Tasks: what a model is asked, what its rows are, and how it is judged."""

from compresskd.metric import Metric
from compresskd.tasks.base import CLASSES, LABELS, VALUES, VECTORS, Judged, Task
from compresskd.tasks.batch import Batch, Inputs, call, logits_of, map_inputs, num_samples, sliced, tensors_of
from compresskd.tasks.classes import (
    IGNORED,
    PROBABILITIES_WITHIN,
    UNLABELLED,
    Classification,
    TextClassification,
    TokenClassification,
    class_indices,
)
from compresskd.tasks.embedding import Embedding
from compresskd.tasks.labels import MultiLabel
from compresskd.tasks.language import CausalLM, MaskedLM, Seq2SeqLM
from compresskd.tasks.outputs import ModelOutputs, TopOutputs
from compresskd.tasks.regression import Regression

__all__ = [
    "CLASSES",
    "IGNORED",
    "LABELS",
    "PROBABILITIES_WITHIN",
    "UNLABELLED",
    "VALUES",
    "VECTORS",
    "Batch",
    "CausalLM",
    "Classification",
    "Embedding",
    "Inputs",
    "Judged",
    "MaskedLM",
    "Metric",
    "ModelOutputs",
    "MultiLabel",
    "Regression",
    "Seq2SeqLM",
    "Task",
    "TextClassification",
    "TokenClassification",
    "TopOutputs",
    "call",
    "class_indices",
    "logits_of",
    "map_inputs",
    "num_samples",
    "sliced",
    "tensors_of",
]

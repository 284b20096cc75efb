"""What a model costs: parameters, latency, multiply-accumulates, and which of its modules are compressed."""

from compresskd.measure.costs import BATCH_SIZES, latency, num_parameters

__all__ = ["BATCH_SIZES", "latency", "num_parameters"]

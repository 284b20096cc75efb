"""What a model costs: parameters, latency, multiply-accumulates, and which of its modules are compressed."""

from compresskd.measure.costs import latency, num_parameters

__all__ = ["latency", "num_parameters"]

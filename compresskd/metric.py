"""What a metric is: its name, which direction is better, and how it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A figure by which models are judged.

    Attributes:
        name: as in records, `test_{name}`.
        higher_is_better: its direction.
        percent: a fraction 0..1 that is shown in percent; differences of it are points.
    """

    name: str
    higher_is_better: bool = True
    percent: bool = False

    def better(self, value: float, than: float) -> bool:
        """Whether `value` beats `than`."""
        return value > than if self.higher_is_better else value < than

    def shown(self, value: float) -> str:
        """As people read it: in percent with two digits, or with four significant ones."""
        return f"{100 * value:.2f}%" if self.percent else f"{value:.4g}"

    def drop(self, reference: float, value: float) -> float:
        """By how much `value` is worse than `reference`: points of a fraction, percent of any other metric."""
        lost = reference - value if self.higher_is_better else value - reference
        if self.percent:
            return 100 * lost
        return 100 * lost / abs(reference) if reference else 0.0 if lost <= 0 else float("inf")


def metric_named(name: str, declared: Mapping[str, Any]) -> Metric:
    """The metric that a record's task declares under this name, by what it says of its direction."""
    return Metric(name, declared.get("higher_is_better", True) is True, declared.get("percent") is True)


LOSS = Metric("loss", higher_is_better=False)
ACCURACY = Metric("accuracy", percent=True)
MACRO_F1 = Metric("macro_f1", percent=True)
MATTHEWS = Metric("matthews")
MSE = Metric("mse", higher_is_better=False)
MAE = Metric("mae", higher_is_better=False)
R2 = Metric("r2")
PEARSON = Metric("pearson")
SPEARMAN = Metric("spearman")
PERPLEXITY = Metric("perplexity", higher_is_better=False)
BITS_PER_BYTE = Metric("bits_per_byte", higher_is_better=False)
COSINE = Metric("cosine")
MICRO_F1 = Metric("micro_f1", percent=True)
METRICS = {
    m.name: m
    for m in (
        LOSS, ACCURACY, MACRO_F1, MICRO_F1, MATTHEWS, MSE, MAE, R2, PEARSON, PERPLEXITY, BITS_PER_BYTE, COSINE,
        SPEARMAN,
    )
}  # fmt: skip

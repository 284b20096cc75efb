"""Dropout of a model at another rate than it was built with, while it is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

# By which names modules of torch and transformers keep a rate that they hand to a function.
_RATES = (
    "dropout", "attention_dropout", "activation_dropout", "attn_dropout", "hidden_dropout", "dropout_p", "dropout_prob",
)  # fmt: skip


def rates_of(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Each module that drops values in training, and the name of the attribute that says how many of them."""
    for module in model.modules():
        names = ["p"] if isinstance(module, _DropoutNd) else _RATES
        yield from ((module, name) for name in names if type(vars(module).get(name)) in (float, int))


@contextmanager
def dropout(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Drop a share `rate` of the values wherever `model` drops some; None changes nothing. Put back afterwards."""
    found = [] if rate is None else list(rates_of(model))
    before = [getattr(module, name) for module, name in found]
    for module, name in found:
        setattr(module, name, rate)
    try:
        yield
    finally:
        for (module, name), value in zip(found, before, strict=True):
            setattr(module, name, value)

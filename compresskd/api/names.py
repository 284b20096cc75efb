"""The names of the method's original description: tensor-train layers, soft targets, rounded weights.

Each is a thin door to a part that has its own documentation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from compresskd.api.functions import compress, soft_targets
from compresskd.models.build import build
from compresskd.quant.prepare import prepare
from compresskd.stages import Quantization
from compresskd.tasks import ModelOutputs
from compresskd.training.evaluation import evaluation_mode
from compresskd.tt import TTLinear as TensorizedLinear

__all__ = [
    "LogitsDistillationLoss",
    "TensorizedLinear",
    "convert_to_qat",
    "convert_to_tensor_train",
    "create_tt_student",
]

_SIDES = (32, 28, 8, 64, 224)  # of images that a convolutional network may take


def convert_to_tensor_train(model: nn.Module, rank: int = 32, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy of a model with its layers in tensor-train format: `compresskd.compress` with its defaults.

    Args:
        model: any module; it is not changed.
        rank: largest TT-rank.
        example: inputs [B, ...] that the new layers are tried on; None makes some up, by the first layer.

    Raises:
        ValueError: no inputs can be made up: give some.
        NothingCompressed: no layer gets smaller.

    >>> import torch, compresskd
    >>> model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128))
    >>> type(compresskd.convert_to_tensor_train(model, rank=32)[0]).__name__
    'TTLinear'
    """
    return compress(model, _inputs_of(model) if example is None else example, rank=rank)


def _inputs_of(model: nn.Module) -> Tensor:
    """Some [3, ...] that the model takes."""
    with evaluation_mode(model), torch.inference_mode():
        for inputs in _candidates(model):
            try:
                model(inputs)
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue
            return inputs.clone()
    raise ValueError(
        f"example: expected inputs [B, ...] that {type(model).__name__} takes, got None; write example="
    )


def _candidates(model: nn.Module) -> Iterator[Tensor]:
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)), None)
    shapes: list[Sequence[int]] = []
    if isinstance(first, nn.Embedding):
        yield torch.randint(first.num_embeddings, (3, 8), generator=generator).to(device)
    elif isinstance(first, nn.Conv2d):
        shapes = [(first.in_channels, side, side) for side in _SIDES]
    elif isinstance(first, nn.Linear):
        shapes = [(first.in_features,), (8, first.in_features)]
    for shape in shapes:
        yield torch.randn(3, *shape, generator=generator).to(device)


def create_tt_student(
    rank: int = 8,
    *,
    hidden: Sequence[int] = (256, 256),
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    seed: int = 0,
) -> nn.Module:
    """Make an untrained perceptron whose layers are born in tensor-train format: fresh factors, not decomposed ones.

    Layers that would not get smaller stay dense. `compresskd.compress(model, example, init="random")` makes such a
    student of any other architecture.

    Args:
        rank: largest TT-rank.
        hidden: widths of the hidden layers.
        num_classes: number of logits.
        input_shape: shape of one sample, which is flattened.
        seed: of the initial parameters.

    Raises:
        ValueError: a width, rank or shape that cannot be.

    >>> import torch, compresskd
    >>> student = compresskd.create_tt_student(rank=8)
    >>> student(torch.randn(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    options = {"hidden": list(hidden), "num_classes": num_classes, "input_shape": list(input_shape)}
    dense = build("compresskd.models.mlp.MLP", options, seed=seed)
    return compress(dense, torch.zeros(2, *input_shape), rank=rank, init="random", seed=seed)


def convert_to_qat(model: nn.Module, n_bits: int = 8) -> nn.Module:
    """Return a copy of a model whose weights are rounded as they are read (fake quantization), to be trained on.

    Any training loop will do, `compresskd.distill` too; `compresskd.quantize` trains with scales that are frozen late.

    Args:
        model: any module, dense or factorized; it is not changed.
        n_bits: of a weight: 2, 3, 4 or 8.

    Raises:
        ValueError: no such number of bits, or nothing to quantize.

    >>> import torch, compresskd
    >>> model = compresskd.convert_to_qat(torch.nn.Linear(16, 4), n_bits=8)
    >>> len(model.weight[0].unique()) <= 2**8
    True
    """
    converted = copy.deepcopy(model)
    prepare(converted, Quantization(bits=n_bits).spec())
    return converted.train()


class LogitsDistillationLoss(nn.Module):
    """The loss of a student by its teacher's logits and the labels, as a module.

    (1 - alpha) cross-entropy + alpha T^2 KL(softmax(teacher / T) || softmax(student / T)): Hinton et al. 2015,
    arXiv:1503.02531, equations 1 to 4.

    Args:
        temperature: T, above 0.
        alpha: share of the teacher, 0 to 1.

    Raises:
        ValueError: a value out of its range.

    >>> import torch, compresskd
    >>> loss = compresskd.LogitsDistillationLoss(temperature=4.0, alpha=0.7)
    >>> student_logits = torch.zeros(2, 10, requires_grad=True)
    >>> teacher_logits, labels = torch.zeros(2, 10), torch.tensor([3, 7])
    >>> loss(student_logits, teacher_logits, labels)['total'].item()  # 0.3 log 10
    0.690775...
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.7):
        super().__init__()
        self.objective = soft_targets(temperature, alpha)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The `total` (a scalar, differentiable), and each term unweighted and without gradient.

        Args:
            student_logits: [B, K].
            teacher_logits: [B, K]; no gradient flows into them.
            labels: [B] int64, or probabilities [B, K].
        """
        total, terms = self.objective(ModelOutputs(student_logits), ModelOutputs(teacher_logits), labels)
        return {"total": total, **terms}

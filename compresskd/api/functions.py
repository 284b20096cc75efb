"""Train, distil, compress and quantize models in memory, by the stages of a run."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.api.samples import Samples, batch_size_of, data_of
from compresskd.api.session import OnEpoch, carry_out, session
from compresskd.data import Augmentation, Data
from compresskd.engine.strategy import Stage, State
from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.options import Fraction, checked
from compresskd.stages import Compression, Factorize, Fit, Quantization, Quantize
from compresskd.training import Recipe
from compresskd.training.schedules import cosine

LABELS = Objective({"cross_entropy": CrossEntropy()})


@checked
def soft_targets(temperature: float = 4.0, alpha: Fraction = 0.7) -> Objective:
    """(1 - alpha) cross-entropy + alpha T^2 KL(teacher / T || student / T): Hinton et al. 2015, arXiv:1503.02531."""
    return Objective(
        {
            "cross_entropy": CrossEntropy(weight=1 - alpha),
            "soft_targets": SoftTargets(weight=alpha, temperature=temperature),
        }
    )


def recipe_of(train: Samples | Tensor, epochs: int, lr: float = 2e-3, **options: Any) -> Recipe:
    """How to train: AdamW and half a cosine as a run's default, the batch size of the loader, and what is given."""
    optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.01, fused=True)
    defaults = {"batch_size": batch_size_of(train) or 64, "optimizer": optimizer, "scheduler": cosine}
    return Recipe(epochs=epochs, **(defaults | options))


def train(
    model: nn.Module,
    train: Samples,
    validation: Samples,
    *,
    epochs: int = 30,
    lr: float = 2e-3,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    **recipe: Any,
) -> nn.Module:
    """Train a model by its labels, in place; arguments, result and errors are those of `distill`.

    >>> import torch, compresskd
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 2
    >>> curve = []
    >>> model = compresskd.train(torch.nn.Linear(8, 2), (x[:48], y[:48]), (x[48:], y[48:]), epochs=2,
    ...     on_epoch=curve.append)
    >>> [record.epoch for record in curve]
    [0, 1]
    """
    data = data_of(train, validation, augmentation=augmentation)
    made = recipe_of(train, epochs, lr, **recipe)
    return _run(Fit(LABELS, epochs), State(model), data, made, seed, device, on_epoch)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    train: Samples,
    validation: Samples,
    *,
    epochs: int = 30,
    lr: float = 2e-3,
    temperature: float = 4.0,
    alpha: float = 0.7,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    **recipe: Any,
) -> nn.Module:
    """Train a student, dense or compressed, to answer as its teacher, in place: the stage `compresskd.stages.Fit`.

    Args:
        student: maps inputs [B, ...] to logits [B, K].
        teacher: does too; it is not changed.
        train: the training samples: a DataLoader, a Dataset of (input, target), or a pair of tensors (inputs [N, F]
            or [N, C, H, W], targets [N] of classes from 0). They are read into memory once, as they are.
        validation: the samples that choose the epoch whose weights are kept.
        epochs: passes over the training samples.
        lr: learning rate of AdamW, which falls along half a cosine.
        temperature: of the soft targets.
        alpha: share of the teacher, 0 to 1; the labels have the rest.
        objective: another loss in place of these two, such as `Objective({"fitnets": Hint(...)})` of
            `compresskd.kd.objective` and the terms in `compresskd.kd`.
        augmentation: of the training samples, one of `compresskd.data.augmentation`.
        seed: of the order of samples, dropout and augmentation.
        device: where to train; None takes that of the student.
        on_epoch: called with a `compresskd.training.EpochRecord` after each epoch.
        **recipe: further fields of `compresskd.training.Recipe`: batch_size, optimizer, scheduler, mixup, ema ...

    Returns:
        The student, with the weights of its best epoch, in evaluation mode.

    Raises:
        ValueError: an option out of its range, or samples that do not fit the models.

    >>> import torch, compresskd
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 2
    >>> teacher, student = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
    >>> student = compresskd.distill(student, teacher, (x[:48], y[:48]), (x[48:], y[48:]), epochs=2)
    >>> student(x).shape
    torch.Size([64, 2])
    """
    data = data_of(train, validation, augmentation=augmentation)
    made = recipe_of(train, epochs, lr, **recipe)
    stage = Fit(soft_targets(temperature, alpha) if objective is None else objective, epochs)
    return _run(stage, State(student, _frozen(teacher)), data, made, seed, device, on_epoch)


def compress(
    model: nn.Module,
    example: Samples | Tensor,
    *,
    rank: int = 16,
    method: str = "tensor_train",
    init: str = "decomposed",
    validation: Samples | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Factorize the layers of a copy of a model, without training: the stage `compresskd.stages.Factorize`.

    A layer that would not get smaller, or that does not compute the same when it is tried in the model, stays as it is;
    a warning of the log `compresskd` names it with the reason.

    Args:
        model: any module; it is not changed.
        example: inputs [B, ...] that the new layers are tried on, or samples as `distill` takes them.
        rank: largest TT-rank.
        method: tensor_train (whose search over modes includes the low-rank SVD), svd, interpolative, tucker or cp.
        init: decomposed takes the factors of the weights, random fresh ones of the same shapes.
        validation: samples by whose accuracy `max_drop` is judged.
        seed: of the samples that are looked at, and of fresh factors.
        **options: further fields of `compresskd.stages.Compression`: tolerance, energy, budget, max_drop, include,
            exclude, modes; `whitening="input"` counts the error of outputs over the example instead of that of weights,
            "two_sided" also what it does to the loss.

    Returns:
        The compressed copy, in the mode of the model.

    Raises:
        ValueError: an option out of its range, or a pattern that fits no layer.
        NothingCompressed: no layer gets smaller.

    >>> import torch, compresskd
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> small = compresskd.compress(model, torch.randn(8, 64), rank=4)
    >>> sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    True
    """
    compression = Compression(rank=rank, method=method, **options)
    if compression.max_drop is not None and validation is None:
        raise ValueError(
            "max_drop: got no validation samples, by whose accuracy it is judged; write validation="
        )
    return _run(Factorize(compression, init=init), _of_copy(model), data_of(example, validation), None, seed)


def quantize(
    model: nn.Module,
    train: Samples | Tensor,
    validation: Samples | None = None,
    *,
    bits: int = 8,
    epochs: int = 0,
    lr: float = 2e-4,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    recipe: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Round the weights of a copy of a model, with or without training: the stage `compresskd.stages.Quantize`.

    Args:
        model: any module, dense or factorized; it is not changed.
        train: samples as `distill` takes them; with 0 epochs, inputs [B, ...] will do.
        validation: the samples that choose the epoch; needed where anything is trained.
        bits: of a weight: 2, 3, 4 or 8.
        epochs: of quantization-aware training; 0 rounds only.
        lr: its learning rate.
        teacher: distil from it while training; None trains by the labels.
        objective: in place of soft targets or labels.
        seed: of the order of samples and of those that are looked at.
        device: where to train; None takes that of the model.
        on_epoch: called with a `compresskd.training.EpochRecord` after each epoch.
        recipe: further fields of `compresskd.training.Recipe`.
        **options: further fields of `compresskd.stages.Quantization`: layers, grid, granularity, activation_bits ...

    Returns:
        The copy, whose weights are rounded as they are read: `compresskd.artifact.save` stores the integers.

    Raises:
        ValueError: an option out of its range, or no layer to quantize.

    >>> import torch, compresskd
    >>> small = compresskd.quantize(torch.nn.Linear(8, 2), torch.randn(16, 8), bits=2)
    >>> [len(row.unique()) <= 2**2 for row in small.weight]
    [True, True]
    """
    if epochs and (validation is None or isinstance(train, Tensor)):
        raise ValueError(
            f"epochs: got {epochs}, which take targets and validation samples; write epochs=0 to round only"
        )
    quantization = Quantization(bits=bits, mode="qat" if epochs else "ptq", **options)
    if objective is None:
        objective = LABELS if teacher is None else soft_targets()
    state = _of_copy(model, teacher)
    made = recipe_of(train, epochs, lr, **(recipe or {}))
    return _run(
        Quantize(quantization, objective, epochs),
        state,
        data_of(train, validation),
        made,
        seed,
        device,
        on_epoch,
    )


def _of_copy(model: nn.Module, teacher: nn.Module | None = None) -> State:
    return State(copy.deepcopy(model), None if teacher is None else _frozen(teacher))


def _frozen(teacher: nn.Module) -> nn.Module:
    """A copy in evaluation mode without gradients: the caller's own keeps its mode."""
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def _run(
    stage: Stage,
    state: State,
    data: Data,
    recipe: Recipe | None,
    seed: int,
    device: str | torch.device | None = None,
    on_epoch: OnEpoch | None = None,
) -> nn.Module:
    """The student that comes out of a stage; where it is trained (a recipe is given), in evaluation mode."""
    held = next(state.student.parameters(), torch.empty(0)).device
    place = held if device is None else torch.device(device)
    for model in filter(None, (state.student, state.teacher)):
        model.to(place)
    is_layer = not any(True for _ in state.student.children())  # which has no parent to be replaced in
    if is_layer:
        state = replace(state, student=nn.Sequential(state.student))
    with session(data, recipe or recipe_of((), 0), seed, place, state.student, on_epoch) as context:
        student = carry_out(type(stage).__name__.lower(), stage, state, context).student
    student = student.get_submodule("0") if is_layer else student
    return student if recipe is None else student.eval()

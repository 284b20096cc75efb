"""What a few batches tell about the layers of a model: second moments of their inputs, weight of their errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.data.base import Split
from compresskd.training.evaluation import evaluation_mode

MAX_POSITIONS = 64  # of a feature map that are looked at in each sample: neighbours say much the same


@dataclass
class LayerStatistics:
    """Second moments of one layer, N its inputs (of a convolution: of its unfolded patches).

    Attributes:
        covariance: [N, N] float32, E[x x^T].
        sensitivity: by how much E|logits - logits'|^2 grows when the mean squared norm of the layer's output
            error at one position grows by 1, errors taken as isotropic: sum over positions of |d logits / d y|^2,
            divided by the number of output features.
    """

    covariance: Tensor
    sensitivity: float = 0.0
    _rows: int = field(default=0, repr=False)
    _samples: int = field(default=0, repr=False)


def calibrate(
    model: nn.Module, names: Sequence[str], split: Split, *, num_samples: int, seed: int, batch_size: int = 64
) -> dict[str, LayerStatistics]:
    """Run `num_samples` samples of `split`, unaugmented, through the model and look at the named layers.

    The layers are `nn.Linear` or ungrouped `nn.Conv2d`; the model's mode and gradients are left as they were.
    """
    statistics: dict[str, LayerStatistics] = {}
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    left = min(num_samples, len(split))
    with evaluation_mode(model), ExitStack() as stack:
        for name in names:
            stack.enter_context(_watched(name, model.get_submodule(name), statistics, generator))
        for batch in split.batches(batch_size, epoch=None):
            if left <= 0:
                break
            inputs = batch.inputs[:left].requires_grad_(
                True
            )  # so that a graph exists even for frozen weights
            left -= len(inputs)
            logits = model(inputs)
            # Hutchinson: E over v of |J^T v|^2 is |J|^2, without a backward pass for each logit
            probe = torch.randn(logits.shape, generator=generator).to(device)
            torch.autograd.grad((logits.float() * probe).sum(), inputs)
    for found in statistics.values():
        found.covariance /= max(1, found._rows)
        found.sensitivity /= max(1, found._samples)
    return statistics


@contextmanager
def _watched(
    name: str, layer: nn.Module, statistics: dict[str, LayerStatistics], generator: torch.Generator
) -> Iterator[None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows = _input_rows(layer, args[0].detach(), generator)
        found = statistics.get(name)
        if found is None:
            size = rows.shape[1]
            found = statistics[name] = LayerStatistics(torch.zeros(size, size, device=rows.device))
        found.covariance.addmm_(rows.T, rows)
        found._rows += len(rows)
        found._samples += len(output)
        num_features = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
        output.register_hook(lambda g: _add_sensitivity(found, g, num_features))

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _add_sensitivity(found: LayerStatistics, gradient: Tensor, num_features: int) -> None:
    found.sensitivity += float(gradient.float().square().sum()) / num_features


def _input_rows(layer: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """[rows, N] float32: what the weight, seen as a matrix, is applied to."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1]).float()
    patches = F.unfold(
        x.float(),
        layer.kernel_size,  # pyright: ignore[reportArgumentType]
        dilation=layer.dilation,  # pyright: ignore[reportArgumentType]
        padding=layer.padding,  # pyright: ignore[reportArgumentType]
        stride=layer.stride,  # pyright: ignore[reportArgumentType]
    )  # [B, N, positions]
    num_positions = patches.shape[2]
    if num_positions > MAX_POSITIONS:
        chosen = torch.randperm(num_positions, generator=generator)[:MAX_POSITIONS].to(x.device)
        patches = patches[:, :, chosen]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])

"""What a few batches tell about the layers of a model: second moments of their inputs, weight of their errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from compresskd import layers, tt
from compresskd.data.base import Split
from compresskd.data.draw import draw
from compresskd.tasks import logits_of
from compresskd.training.evaluation import evaluation_mode

CALIBRATED_TOGETHER = 64  # samples
MAX_POSITIONS = 64  # of a feature map that are looked at in each sample: neighbours say much the same


@dataclass
class LayerStatistics:
    """Second moments of one layer, N its inputs (of a convolution: of its unfolded patches).

    Attributes:
        covariance: [N, N] float32, E[x x^T]; None for layers that are no matrix applied to every input alike.
        power: mean squared norm of the output at one position.
        sensitivity: by how much E|logits - logits'|^2 grows when the mean squared norm of the layer's output
            error at one position grows by 1, errors taken as isotropic: sum over positions of |d logits / d y|^2,
            divided by the number of output features.
    """

    covariance: Tensor | None
    sensitivity: float = 0.0
    power: float = 0.0
    _rows: int = field(default=0, repr=False)
    _samples: int = field(default=0, repr=False)
    _positions: int = field(default=0, repr=False)


@dataclass(frozen=True)
class _Output:
    """Where the output of a layer is in the graph, before anything changes it in place."""

    statistics: LayerStatistics
    edge: GradientEdge
    num_features: int

    def add(self, gradient: Tensor | None) -> None:
        """Count what the logits say of it."""
        if gradient is not None:
            self.statistics.sensitivity += float(gradient.float().square().sum()) / self.num_features


def calibrate(
    model: nn.Module,
    names: Sequence[str],
    split: Split,
    *,
    num_samples: int,
    seed: int,
    batch_size: int = CALIBRATED_TOGETHER,
) -> dict[str, LayerStatistics]:
    """Run `num_samples` samples of `split`, a seeded draw, through the model and look at the named layers.

    Any layer will do that maps one tensor to another, of any type; the model's mode and gradients are left as they
    were. A layer that never runs is not among what is returned.
    """
    statistics: dict[str, LayerStatistics] = {}
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    outputs: list[_Output] = []
    with evaluation_mode(model), ExitStack() as stack:
        for name in names:
            stack.enter_context(_watched(name, model.get_submodule(name), statistics, generator, outputs))
        for batch in draw(split, num_samples, seed=seed).batches(batch_size):
            logits = logits_of(batch.call(model))
            # Hutchinson: E over v of |J^T v|^2 is |J|^2, without a backward pass for each logit
            probe = torch.randn(logits.shape, generator=generator).to(device)
            if logits.requires_grad:
                edges = [output.edge for output in outputs]
                found = torch.autograd.grad((logits.float() * probe).sum(), edges, allow_unused=True)
                for output, gradient in zip(outputs, found, strict=True):
                    output.add(gradient)
            outputs.clear()
    for found in statistics.values():
        if found.covariance is not None:
            found.covariance /= max(1, found._rows)
        found.power /= max(1, found._positions)
        found.sensitivity /= max(1, found._samples)
    return statistics


@contextmanager
def _watched(
    name: str,
    layer: nn.Module,
    statistics: dict[str, LayerStatistics],
    generator: torch.Generator,
    outputs: list[_Output],
) -> Iterator[None]:
    is_matrix = _is_matrix(layer)  # asked before the hook below makes it a layer with a hook
    is_convolution = hasattr(layer, "kernel_size")

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        given = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if not output.requires_grad:  # frozen, of ids or of inputs: the graph begins here
            output = output.detach().requires_grad_(True).clone()
        found = statistics.setdefault(name, LayerStatistics(None))
        if is_matrix:
            rows = _input_rows(layer, given.detach(), generator)
            if found.covariance is None:
                found.covariance = rows.new_zeros(rows.shape[1], rows.shape[1])
            found.covariance.addmm_(rows.T, rows)
            found._rows += len(rows)
        num_features = output.shape[1 if is_convolution else -1]
        found.power += float(output.detach().float().square().sum())
        found._positions += output.numel() // num_features
        found._samples += len(output)
        if output.requires_grad:  # else the model runs the layer where nothing is to be learned
            outputs.append(_Output(found, torch.autograd.graph.get_gradient_edge(output), num_features))
        return output

    handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _is_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, tt.TTLinear | tt.TTConv2d) or layers.is_matrix(layer)


def of_table(statistics: LayerStatistics, table: nn.Embedding) -> LayerStatistics:
    """What `calibrate` saw of an embedding, as that of a matrix [V, D] whose rows are asked for equally often."""
    num_rows, width = table.weight.shape
    covariance = torch.eye(width, device=table.weight.device) / num_rows
    return LayerStatistics(covariance, statistics.sensitivity, statistics.power)


def combined(statistics: Sequence[LayerStatistics]) -> LayerStatistics:
    """Of one weight that several layers apply: what its error does to each of them adds up.

    The errors of the outputs weigh as the layers' sensitivities do, so that sensitivity * tr(E C E^T) is their sum.
    """
    if len(statistics) == 1:
        return statistics[0]
    sensitivity = sum(each.sensitivity for each in statistics)
    total = sensitivity or len(statistics)
    shares = [(each.sensitivity if sensitivity else 1.0) / total for each in statistics]
    covariances = [
        s * each.covariance for s, each in zip(shares, statistics, strict=True) if each.covariance is not None
    ]
    power = sum(s * each.power for s, each in zip(shares, statistics, strict=True))
    return LayerStatistics(sum(covariances[1:], covariances[0]) if covariances else None, sensitivity, power)


def _input_rows(layer: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """[rows, N] float32: what the weight, seen as a matrix, is applied to."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | tt.TTConv2d):
        return x.reshape(-1, x.shape[-1]).float()
    if isinstance(layer, nn.Conv1d | tt.TTConv1d):
        layer, x = tt.two_dimensional(layer), x.unsqueeze(-2)
    pads = layer.geometry.pads if isinstance(layer, tt.TTConv2d) else layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x.float(), tuple(pads), mode=mode)
    patches = F.unfold(
        padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )  # [B, N, positions]
    num_positions = patches.shape[2]
    if num_positions > MAX_POSITIONS:
        chosen = torch.randperm(num_positions, generator=generator)[:MAX_POSITIONS].to(x.device)
        patches = patches[:, :, chosen]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])

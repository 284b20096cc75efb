"""Finding out by one forward pass which modules of a model run, and what they give."""

import difflib
from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresskd.kd.capture import ActivationCapture
from compresskd.layers.stacks import blocks_of
from compresskd.options import OptionError
from compresskd.tasks import Inputs, call, logits_of


@dataclass(frozen=True)
class Probe:
    """What one forward pass showed of a model.

    Args:
        model: the model.
        logits: what it returned, ``[B, K]`` or ``[B, L, K]``.
        outputs: of every module that ran, by name, in the order in which they finished.
    """

    model: nn.Module
    logits: Tensor
    outputs: dict[str, Tensor]

    def candidates(self) -> list[str]:
        """Modules worth comparing: layers that own a matrix, blocks of such; not what gives the logits."""
        names, layers = [], set()
        for name, module in self.model.named_modules():
            if not name or _is_within(name, layers) or not any(p.ndim > 1 for p in module.parameters()):
                continue
            if _owns_matrix(module):
                layers.add(name)
            output = self.outputs.get(name)
            if output is not None and output is not self.logits and len(output) == len(self.logits):
                names.append(name)
        return names

    def trunk(self) -> list[str]:
        """The outermost candidates, in the order in which they finished."""
        candidates = set(outermost(self.candidates()))
        return [name for name in self.outputs if name in candidates]

    def stacks(self) -> list[list[str]]:
        """The blocks of every outermost stack that ran, the longest stack first."""
        ran = [
            kept
            for stack in blocks_of(self.model)
            if (kept := [name for name in stack if name in self.outputs])
        ]
        return sorted(ran, key=len, reverse=True)

    def entering(self, block: str) -> str | None:
        """The module whose output, of the shape of the block's, was the last before it ran; None where none was."""
        before: str | None = None
        for name, output in self.outputs.items():
            if name == block or name.startswith(f"{block}."):
                break
            if output.shape == self.outputs[block].shape and not _is_within(name, {block}):
                before = name
        return before

    def check_name(self, side: str, name: str) -> None:
        """Raises: OptionError of ``pairs`` with the nearest name, unless ``name`` is a module that ran."""
        if name in self.outputs:
            return
        if name in dict(self.model.named_modules()):
            raise OptionError("pairs", name, "a module that runs in forward and returns a tensor")
        nearest = difflib.get_close_matches(name, self.outputs, n=1, cutoff=0.0)
        hint = f"; nearest is {nearest[0]!r}" if nearest else ""
        raise OptionError("pairs", name, f"the name of a module of the {side}{hint}")


def probe(model: nn.Module, example: Inputs) -> Probe:
    """Runs ``model`` on ``example`` in eval mode without gradient; leaves no hook, and modes as they were."""
    modules = dict(model.named_modules())
    modes = {module: module.training for module in modules.values()}
    # What a parametrization returns is a weight, not a feature.
    capture = ActivationCapture(
        [name for name in modules if name and "parametrizations" not in name.split(".")]
    )
    try:
        model.eval()
        with torch.no_grad(), capture.attached(model):
            return Probe(model, logits_of(call(model, example)), capture.partial())
    finally:
        for module, mode in modes.items():
            module.training = mode


def outermost(names: Iterable[str]) -> list[str]:
    """Those that lie within no other of them."""
    names = list(names)
    known = set(names)
    return [name for name in names if not _is_within(name, known)]


def _is_within(name: str, others: Container[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))


def _owns_matrix(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    for child in module.children():
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            own.extend(child.parameters())
    return any(p.ndim > 1 for p in own)

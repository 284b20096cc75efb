"""The blocks that a model repeats: of a transformer its layers, of a residual network those of each width."""

from collections.abc import Iterator

from torch import nn


def stacks_of(model: nn.Module, *, least: int = 2) -> Iterator[tuple[str, int]]:
    """The name and length of every sequence of `least` or more blocks, themselves of several modules, of one class."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) >= least:
            blocks = list(module)
            if len({type(block) for block in blocks}) == 1 and any(blocks[0].children()):
                yield name, len(blocks)

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


def blocks_of(model: nn.Module) -> list[list[str]]:
    """The names of the blocks of every outermost stack, in the order of the model; stacks of one where no other is."""
    names = [name for name, _ in list(stacks_of(model)) or stacks_of(model, least=1)]
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return [[f"{name}.{key}" for key, _ in model.get_submodule(name).named_children()] for name in outer]

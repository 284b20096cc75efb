"""What the blocks of a model are given: hidden states, and what else each is called with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.tasks import Inputs, call
from compresskd.training.evaluation import evaluation_mode


class _Reached(Exception):
    """Ends a forward pass that has come as far as it was asked to."""


@dataclass(frozen=True)
class BlockCall:
    """One call of a block.

    Attributes:
        hidden: what flows through the blocks, [B, L, C] or [B, C, H, W].
        args: the positional arguments, `hidden` among them where `name` is None.
        kwargs: those by name.
        name: of the argument that `hidden` is; None for the first positional one.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str | None

    def elsewhere(self) -> BlockCall:
        """The same surroundings, without the hidden states."""
        nothing = torch.empty(0)
        if self.name is None:
            return replace(self, hidden=nothing, args=(nothing, *self.args[1:]))
        return replace(self, hidden=nothing, kwargs={**self.kwargs, self.name: nothing})

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What the block makes of other hidden states in the same surroundings: masks, positions."""
        hidden = hidden.clone()  # a block may change what it is given in place
        if self.name is None:
            output = block(hidden, *self.args[1:], **self.kwargs)
        else:
            output = block(*self.args, **{**self.kwargs, self.name: hidden})
        return hidden_of(output)


def hidden_of(output: Any) -> Tensor:
    """The hidden states among what a block returns: itself, or its first element."""
    return output[0] if isinstance(output, tuple | list) else output


def calls_of(model: nn.Module, blocks: Sequence[str], inputs: Inputs) -> dict[str, BlockCall]:
    """How each of these blocks is called for these inputs, in the order in which they run.

    Hidden states are those of the first block alone, as those of all would fill the memory. The pass ends at the last
    block, so that no logits are computed; gradients flow where they are enabled. A block that is called several times
    is noted as it is called first, one that never runs is left out.
    """
    found: dict[str, BlockCall] = {}
    with _noting(model, blocks, found), suppress(_Reached):
        call(model, inputs)
    return found


def hidden_before(model: nn.Module, block: str, inputs: Inputs) -> Tensor:
    """What enters a block: hidden states."""
    return calls_of(model, [block], inputs)[block].hidden


@torch.no_grad()
def links(model: nn.Module, blocks: Sequence[str], inputs: Inputs) -> set[str]:
    """Those of these blocks, in the order in which they run, that are given just what the one before them gave."""
    gave: dict[str, Tensor] = {}
    linked = set()
    follows = {block: before for before, block in itertools.pairwise(blocks)}

    def given(block: str, hidden: Tensor) -> None:
        before = gave.pop(follows.get(block, ""), None)
        if before is not None and before.shape == hidden.shape and torch.allclose(before, hidden, 1e-4, 1e-5):
            linked.add(block)

    def gives(block: str, output: Any) -> None:
        gave[block] = hidden_of(output).clone()  # what follows may change it in place

    _watch(model, blocks, inputs, given, gives)
    return linked


@torch.no_grad()
def shapes_before(model: nn.Module, blocks: Sequence[str], inputs: Inputs) -> dict[str, torch.Size]:
    """The shape of the hidden states that each of these blocks is given; one that never runs is left out."""
    found: dict[str, torch.Size] = {}
    _watch(model, blocks, inputs, lambda block, hidden: found.update({block: hidden.shape}), lambda *_: None)
    return found


@torch.no_grad()
def num_calls(model: nn.Module, blocks: Sequence[str], inputs: Inputs) -> dict[str, int]:
    """How often each of these blocks runs in one pass of the model, in evaluation mode."""
    counts = dict.fromkeys(blocks, 0)

    def gives(block: str, _: Any) -> None:
        counts[block] += 1

    _watch(model, blocks, inputs, lambda *_: None, gives, to_the_end=True)
    return counts


def _watch(
    model: nn.Module,
    blocks: Sequence[str],
    inputs: Inputs,
    given: Callable[[str, Tensor], None],
    gives: Callable[[str, Any], None],
    *,
    to_the_end: bool = False,
) -> None:
    """One pass in evaluation mode, which tells what each block is given as hidden states, and what it gives.

    It ends where the last block begins, so that no logits are computed, or `to_the_end`.
    """
    begun: set[str] = set()

    def before(block: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = _call(args, kwargs)
        if found is not None:
            given(block, found.hidden)
        begun.add(block)
        if len(begun) == len(blocks) and not to_the_end:
            raise _Reached

    def after(block: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        gives(block, output)

    with ExitStack() as stack, evaluation_mode(model):
        for name in blocks:
            module = model.get_submodule(name)
            hooks = (
                module.register_forward_pre_hook(functools.partial(before, name), with_kwargs=True),
                module.register_forward_hook(functools.partial(after, name)),
            )
            for handle in hooks:
                stack.callback(handle.remove)
        with suppress(_Reached):
            call(model, inputs)


@contextmanager
def _noting(model: nn.Module, blocks: Sequence[str], found: dict[str, BlockCall]) -> Iterator[None]:
    def hook(name: str):
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _call(tuple(map(_forgetful, args)), {k: _forgetful(v) for k, v in kwargs.items()})
            if given is not None and name not in found:
                # a block may change what it is given in place
                found[name] = replace(given, hidden=given.hidden.clone()) if not found else given.elsewhere()
            if len(found) == len(blocks):
                raise _Reached

        return note

    with ExitStack() as stack:
        for name in blocks:
            handle = model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _forgetful(value: Any) -> Any:
    """The value, or None for a cache of keys and values, which a block would add to each time that it is called."""
    return None if hasattr(value, "get_seq_length") and hasattr(value, "update") else value


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall | None:
    if args and isinstance(args[0], Tensor):
        return BlockCall(args[0], args, kwargs, None)
    named = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
    return None if named is None else BlockCall(kwargs[named], args, kwargs, named)


def relative_error(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over positions of ``|ours - theirs|^2 / |theirs|^2``, norms over channels; padding counts for nothing.

    Relative, as a few positions of language models have norms a thousand times those of the others (Sun et al. 2024,
    arXiv:2402.17762). Where `theirs` is nearly nothing, as after a ReLU, a tenth of the median stands for it.

    Args:
        ours, theirs: [B, L, C] or [B, C, H, W].
        mask: [B, L] bool, which positions are no padding.
    """
    channels = 1 if theirs.ndim == 4 else -1
    error = (ours.float() - theirs.float()).square().sum(dim=channels)
    size = theirs.detach().float().square().sum(dim=channels)
    if mask is not None and mask.shape == size.shape:
        error, size = error[mask], size[mask]
    least = torch.finfo(torch.float32).tiny
    return (error / size.clamp_min((0.1 * size.median()).clamp_min(least))).mean()

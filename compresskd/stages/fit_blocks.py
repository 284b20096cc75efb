"""Fit the student block by block to the teacher's hidden states: no labels, no logits, the memory of one block."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from compresskd import layers
from compresskd.compression.block_calls import (
    BlockCall,
    calls_of,
    hidden_before,
    links,
    num_calls,
    relative_error,
    shapes_before,
)
from compresskd.data.base import Data
from compresskd.data.draw import draw
from compresskd.engine.strategy import Context, State, earlier
from compresskd.layers.stacks import blocks_of
from compresskd.optimizer import make_optimizer
from compresskd.options import Count, checked, one_of
from compresskd.tasks import Batch, Inputs
from compresskd.training import LearningRate, StepProgress
from compresskd.training.evaluation import evaluation_mode
from compresskd.training.precision import autocast

Answer = Callable[[int], Tensor]
ENTERING = "before the blocks"
_CHECKS = 4  # of the error on what was held out, for each block
_HELD_OUT = 10  # one batch of so many
_MADE_OF_THE_TEACHER = (
    "stack of blocks of the student has a namesake of as many blocks and as wide in the teacher; it takes a student "
    "that was made from the teacher (strategy=compress_blockwise)"
)


@checked
@dataclass(frozen=True)
class FitBlocks:
    """Minimise, one block after the other, the relative error of a block's output against the teacher's.

    Slice-wise distillation (Hamreras et al. 2026, arXiv:2605.19842; for quantization BRECQ, Li et al. 2021,
    arXiv:2102.05426, equation 10). The hidden states of the samples are kept for one block of each model and moved on
    block by block. What comes before the first block, such as a factorized embedding, is fitted first.

    Attributes:
        updates: of Adam, for each block; the learning rate falls to zero over them.
        num_samples: training samples, a seeded draw from those with labels and those without, each in its share. A
            tenth of the batches, with labels, is held out and chooses the weights.
        batch_size: samples of an update.
        learning_rate: of Adam.
        inputs: of a block: 'student', what the fitted blocks before it give, so that it makes up for their errors; or
            'teacher', what the teacher's give.
        toward: name of an earlier stage, whose model takes the teacher's place, such as the dense student that was
            factorized; None: the run's teacher.
    """

    updates: Count = 200
    num_samples: Count = 256
    batch_size: Count = 16
    learning_rate: LearningRate = 3e-4
    inputs: Annotated[str, one_of("student", "teacher")] = "student"
    toward: str | None = None

    @property
    def needs_teacher(self) -> bool:
        """Unless the model of an earlier stage is what is fitted to."""
        return self.toward is None

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: the student has stacks of the teacher's blocks."""
        # the model of an earlier stage has the student's blocks
        model = state.teacher if self.toward is None else state.student
        stacks = [] if model is None else _stacks(state.student, model, example)
        for stack in stacks:
            for name, count in num_calls(state.student, stack, example).items():
                if count > 1:
                    raise ValueError(
                        f"fit_blocks: {name} runs {count} times in one pass, so that it cannot be fitted to one place; "
                        "write strategy=compress_then_distill"
                    )
        if not stacks:
            raise ValueError(f"fit_blocks: no {_MADE_OF_THE_TEACHER}")
        return state

    def __call__(self, state: State, context: Context) -> State:
        """Fit `state.student` in place; details record each block's error on held-out samples before and after."""
        student = state.student
        teacher = state.teacher if self.toward is None else earlier(self.toward, context)
        if teacher is None:
            raise ValueError("fit_blocks needs a teacher")
        batches = list(self._batches(context.data, context.stage_seed))
        stacks = _stacks(student, teacher, batches[0].inputs)
        done = _Done.of(context.training_state())
        if done.errors:
            student.load_state_dict(done.student)
            context.reporter.note(f"{context.stage}: resumes after {len(done.errors)} blocks")
        training = _Training(self, student, teacher, batches, context, 1 + sum(map(len, stacks)), done)
        with evaluation_mode(student), evaluation_mode(teacher):
            if stacks:
                training.before(stacks[0][0])
            for stack in stacks:
                training.along(stack)
        context.details.update(block_errors=done.errors, epochs=0)
        return state

    def _batches(self, data: Data, seed: int) -> Iterator[Batch]:
        """Those with labels last, as the last ones are held out."""
        parts = [part for part in (data.unlabelled, data.train) if part is not None]
        total = sum(map(len, parts))
        for part in parts:
            count = max(1, round(self.num_samples * len(part) / total))
            yield from draw(part, count, seed=seed).batches(self.batch_size)


@dataclass
class _Done:
    """Blocks that are fitted: errors by name, and the student with them as it was last saved."""

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    student: Mapping[str, Tensor] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> _Done:
        return cls() if saved is None else cls(dict(saved["errors"]), saved["student"])


@dataclass
class _Training:
    """The fitting of all blocks, one after the other."""

    options: FitBlocks
    student: nn.Module
    teacher: nn.Module
    batches: Sequence[Batch]
    context: Context
    total: int
    done: _Done

    def before(self, first: str) -> None:
        """Fit what runs before the first block, where it differs from the teacher's."""
        if ENTERING in self.done.errors:
            return
        with torch.no_grad():
            theirs = self._before(self.teacher, first)

        def answer(k: int) -> Tensor:
            return hidden_before(self.student, first, self.batches[k].inputs)

        every = [p for p in self.student.parameters() if p.requires_grad]
        given = answer(0)
        reached: Sequence[Any] = [None] * len(every)
        if given.requires_grad:
            reached = torch.autograd.grad(given.sum(), every, allow_unused=True)
        trained = [p for p, gradient in zip(every, reached, strict=True) if gradient is not None]
        self._fit(ENTERING, trained, answer, theirs)

    def along(self, stack: Sequence[str]) -> None:
        """Fit the blocks of a stack in order, moving the hidden states of both models along."""
        left = [name for name in stack if name not in self.done.errors]
        if not left:
            return
        with torch.no_grad():
            calls = [calls_of(self.teacher, left, batch.inputs) for batch in self.batches]
        linked = links(self.teacher, left, self.batches[0].inputs)
        follows = self.options.inputs == "student"
        theirs: list[Tensor] = []
        ours: list[Tensor] = []
        for name in left:
            block, other = self.student.get_submodule(name), self.teacher.get_submodule(name)
            given = [each[name] for each in calls]
            if name not in linked:
                theirs = self._before(self.teacher, name)
                ours = self._before(self.student, name) if follows else theirs
            answers = self._moved(other, given, theirs)
            trained = [p for p in block.parameters() if p.requires_grad]
            self._fit(name, trained, functools.partial(_answer, block, given, ours), answers)
            theirs, ours = answers, self._moved(block, given, ours) if follows else answers

    @torch.no_grad()
    def _before(self, model: nn.Module, block: str) -> list[Tensor]:
        return [hidden_before(model, block, batch.inputs) for batch in self.batches]

    @torch.no_grad()
    def _moved(self, block: nn.Module, given: Sequence[BlockCall], hidden: Sequence[Tensor]) -> list[Tensor]:
        with self._autocast():
            return [call.run(block, x).float() for call, x in zip(given, hidden, strict=True)]

    def _fit(
        self, name: str, trained: Sequence[nn.Parameter], answer: Answer, theirs: Sequence[Tensor]
    ) -> None:
        """Train these parameters until `answer(k)` is like `theirs[k]`; the best on what is held out are kept."""
        count = len(self.batches)
        seen = max(1, count - max(1, count // _HELD_OUT))
        held = range(min(seen, count - 1), count)
        before = best = self._error(answer, theirs, held)
        kept = [p.detach().clone() for p in trained]
        for step in self._steps(trained, answer, theirs, seen) if trained and before else ():
            if step % max(1, self.options.updates // _CHECKS) == 0 or step == self.options.updates:
                error = self._error(answer, theirs, held)
                if error < best:
                    best, kept = error, [p.detach().clone() for p in trained]
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
        self.done.errors[name] = {"before": before, "after": best}
        number = len(self.done.errors)
        self.context.reporter.note(f"block {number}/{self.total}  {name}: error {before:.4f} to {best:.4f}")
        self._save()

    def _steps(
        self, trained: Sequence[nn.Parameter], answer: Answer, theirs: Sequence[Tensor], count: int
    ) -> Iterator[int]:
        """Update `trained` on the first `count` batches, and give the number of updates after each."""
        options = self.options
        generator = torch.Generator().manual_seed(self.context.stage_seed + len(self.done.errors))
        optimizer = make_optimizer(functools.partial(torch.optim.Adam, lr=options.learning_rate), trained)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / options.updates)
        order: list[int] = []
        started, total = time.perf_counter(), 0.0
        for step in range(options.updates):
            order = order or torch.randperm(count, generator=generator).tolist()
            k = order.pop()
            with self._autocast():
                found = answer(k)
            loss = relative_error(found, theirs[k], self.batches[k].mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            rate = (step + 1) * options.batch_size / (time.perf_counter() - started)
            place = len(self.done.errors), self.total, step + 1, options.updates
            self.context.reporter.step(StepProgress(*place, total / (step + 1), {}, rate, "block"))
            yield step + 1
        optimizer.zero_grad()

    @torch.no_grad()
    def _error(self, answer: Answer, theirs: Sequence[Tensor], held: Sequence[int]) -> float:
        with self._autocast():
            errors = [relative_error(answer(k), theirs[k], self.batches[k].mask) for k in held]
        return float(torch.stack(errors).mean())

    def _autocast(self) -> Any:
        return autocast(self.context.recipe.precision, self.context.device)

    def _save(self) -> None:
        """Write where it stands, not more often than the checkpoints of a training."""
        if time.monotonic() - self.done.saved_at < self.context.recipe.checkpoint_seconds:
            return
        self.context.save_training({"errors": self.done.errors, "student": self.student.state_dict()})
        self.done.saved_at = time.monotonic()


def _stacks(student: nn.Module, teacher: nn.Module, example: Inputs) -> list[list[str]]:
    """The blocks of every outermost stack of the student that the teacher has as well, in the order of their runs.

    Of a model without such stacks, its layers are the blocks. Left out is what never runs, and what is given hidden
    states of another shape than in the teacher.
    """
    found, there = blocks_of(student), blocks_of(teacher)
    stacks = [stack for stack in found if stack in there]
    if not found:
        ours = dict(student.named_modules())
        stacks = [[layer.name for layer in layers.find(teacher) if layer.name in ours]]
    return [kept for stack in stacks if (kept := _alike(student, teacher, stack, example))]


def _alike(student: nn.Module, teacher: nn.Module, stack: Sequence[str], example: Inputs) -> list[str]:
    ours, theirs = (shapes_before(model, stack, example) for model in (student, teacher))
    return [name for name, shape in theirs.items() if ours.get(name) == shape]


def _answer(block: nn.Module, given: Sequence[BlockCall], hidden: Sequence[Tensor], k: int) -> Tensor:
    return given[k].run(block, hidden[k])

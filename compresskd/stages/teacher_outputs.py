"""What the teacher says of the training samples, computed once where a sample looks the same every time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import artifact
from compresskd.data.assemble import short_hash
from compresskd.data.base import Split
from compresskd.data.cache import Cache
from compresskd.distributed import active
from compresskd.kd.packed import pack
from compresskd.progress import told
from compresskd.stages.packed_outputs import Stored, stored
from compresskd.tasks import Batch, ModelOutputs, Task, TopOutputs
from compresskd.training import Recipe
from compresskd.training.evaluation import evaluation_mode, of_every_sample
from compresskd.training.precision import autocast


class TeacherOutputs:
    """The teacher's logits for each training batch.

    Without augmentation, or with a bank of K fixed augmented views, a view of the whole split is computed in one
    pass when it is first asked for, at the evaluation batch size: what is stored then does not depend on where
    training was interrupted, so that a resumed run repeats bit for bit. Several processes take turns by batches, and
    each has all of it.

    Args:
        teacher: evaluated without gradient; its mode is put back after each pass.
        split: the training split.
        task: what the models are asked.
        passes: over the whole split that will be asked for. A view that is seen but once is not worth storing.
        seed: of the training, which the augmented views follow from.
        cacheable: False where features are compared, which takes a real pass each time; then nothing is kept.
        recipe: gives the evaluation batch size, the precision, and how outputs are packed, if they are.
        temperatures: at which terms compare packed outputs.
        note: told how far a pass over a whole view is, now and then.
    """

    def __init__(
        self,
        teacher: nn.Module,
        split: Split,
        task: Task,
        passes: int,
        *,
        seed: int,
        cacheable: bool,
        recipe: Recipe,
        device: torch.device,
        temperatures: tuple[float, ...] = (),
        note: Callable[[str], None] = lambda _: None,
    ):
        self._teacher, self._split, self._task, self._seed = teacher, split, task, seed
        self._recipe, self._device = recipe, device
        self._caching = (
            cacheable and task.rows_are_samples and split.num_views is not None and passes > split.num_views
        )
        self._temperatures, self._note = temperatures, note
        self._repeats = cacheable and split.num_views is not None
        self._views: dict[int, Tensor] = {}
        self._packed: dict[int, Stored] = {}
        self._counted: set[int] = set()  # views that are in the counts, before an interruption or since
        self._num_computed = self._num_served = 0
        self._seconds = 0.0

    def __call__(self, batch: Batch) -> ModelOutputs:
        """The rows of `batch`, logits [N, K] detached."""
        self._num_served += batch.num_together
        if self._recipe.teacher_outputs is not None:
            return self._of_largest(batch, self._recipe.teacher_outputs)
        if self._caching and batch.view >= 0:
            if batch.view not in self._views:
                self._views[batch.view] = self._whole_view(batch.view)
            return ModelOutputs(self._views[batch.view][batch.index], task=self._task)
        return self._compute(batch)

    def state_dict(self) -> dict[str, Any]:
        """What is counted, for a checkpoint; the stored logits themselves are computed again."""
        return {**self._counts(), "views": sorted(self._counted)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from what `state_dict` gave."""
        self._num_computed, self._num_served = int(state["num_computed"]), int(state["num_served"])
        self._seconds, self._counted = float(state["seconds"]), set(state.get("views", ()))

    def saving(self) -> dict[str, float | int]:
        """How many samples the teacher saw, how many were asked for, and the seconds that this saved.

        What an interruption made the teacher see once more is not counted: the figures are those of a run that was
        never interrupted.
        """
        per_sample = self._seconds / max(1, self._num_computed)
        return {
            **self._counts(),
            "seconds_saved": per_sample * max(0, self._num_served - self._num_computed),
        }

    def _counts(self) -> dict[str, float | int]:
        return {"num_computed": self._num_computed, "num_served": self._num_served, "seconds": self._seconds}

    def _of_largest(self, batch: Batch, k: int) -> ModelOutputs:
        """The packed rows of `batch`: read from files, or made now of samples that never look the same again."""
        if not self._repeats or batch.view < 0:
            return _packed_rows(pack(self._compute(batch).logits, k, self._temperatures), self._task)
        if batch.view not in self._packed:
            recipe, num_views = self._recipe, self._split.num_views
            determined = [
                artifact.fingerprint(self._teacher), self._split.fingerprint, batch.view, self._task.name, k,
                recipe.teacher_bits, list(self._temperatures), recipe.precision, recipe.evaluation_batch_size,
                self._seed if num_views is not None and num_views > 1 else None,  # which augmented views follow from
            ]  # fmt: skip
            folder = Cache.at(None, 0).directory / "teacher_outputs" / short_hash(determined)
            rows = self._rows_to_pack(batch.view, k)
            entry = functools.partial(stored, folder, rows, self._temperatures, bits=recipe.teacher_bits)
            active().first(lambda: entry() and None)  # one process writes it
            self._packed[batch.view] = entry()
        return _packed_rows(self._packed[batch.view].of(batch.index), self._task)

    def _rows_to_pack(self, view: int, k: int) -> Iterator[tuple[TopOutputs, Tensor]]:
        for batch in self._told(self._split.batches(self._batch_size, view=view, seed=self._seed)):
            rows = self._compute(batch)
            counts = torch.ones(len(batch), dtype=torch.int64)
            if rows.sample is not None:
                counts = torch.bincount(rows.sample, minlength=len(batch))
            yield pack(rows.logits, k, self._temperatures), counts

    def _whole_view(self, view: int) -> Tensor:
        computed, seconds = self._num_computed, self._seconds
        batches = self._told(self._split.every_sample(self._batch_size, view=view, seed=self._seed))
        logits = of_every_sample(lambda batch: self._compute(batch).logits, batches).to(self._device)
        self._num_computed = computed + len(self._split)
        if view in self._counted:
            self._num_computed, self._seconds = computed, seconds
        self._counted.add(view)
        return logits

    @property
    def _batch_size(self) -> int:
        return self._recipe.evaluation_batch_size

    def _told(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Those of a whole view; how far it is, is told."""
        count = self._split.num_batches(self._batch_size, training=False)
        return told(batches, count, "the teacher's outputs, batches", self._note)

    def _compute(self, batch: Batch) -> ModelOutputs:
        start = time.perf_counter()
        with evaluation_mode(self._teacher), torch.no_grad(), autocast(self._recipe.precision, self._device):
            rows, _ = self._task.rows(batch.call(self._teacher), batch)
        self._num_computed += batch.num_together
        self._seconds += time.perf_counter() - start
        return replace(rows, logits=rows.logits.float())


def _packed_rows(top: TopOutputs, task: Task) -> ModelOutputs:
    return ModelOutputs(top.values, task=task, top=top)

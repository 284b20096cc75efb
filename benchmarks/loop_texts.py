"""The cases of loop_overhead.py on texts: the same batches for `fit`, for a bare PyTorch loop and for the Trainer.

The Trainer is that of transformers, as it is configured to do no more than the others: no logs, no checkpoints, no
clipping, the loss alone at validation. It needs the package accelerate, which nothing else here does.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from compresskd.data.base import Data, Split
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective
from compresskd.models.huggingface import huggingface
from compresskd.stages.train_student import Comparison, compared
from compresskd.tasks import Batch, CausalLM, logits_of
from compresskd.training import LossOutput, Recipe, fit
from compresskd.training.schedules import cosine

EPOCHS, SEED, NUM_VALIDATION = 1, 0, 64
Loop = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Texts:
    """Data and a model, with the batches of one epoch in memory."""

    data: Data
    model: nn.Module
    batch_size: int

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return self.data.train.num_batches(self.batch_size)

    def batches(self, split: Split) -> list[Batch]:
        """Those of training, in the order of the first epoch, or of validation."""
        return list(split.batches(self.batch_size, epoch=0 if split.name == "train" else None, seed=SEED))

    def loops(self, device: torch.device) -> dict[str, Loop]:
        """Each trains a model for one epoch and scores validation."""
        both = self.batches(self.data.train), self.batches(self.data.validation)
        found: dict[str, Loop] = {
            "bare": functools.partial(_bare, *both, isinstance(self.data.task, CausalLM))
        }
        if find_spec("accelerate") is not None:
            found["Trainer"] = functools.partial(_trainer, *both, isinstance(self.data.task, CausalLM))
        return {**found, "fit": functools.partial(_ours, self.data, self.batch_size, device)}


def minilm(data: Data, folder: str, num_train: int) -> Texts:
    """A sentence encoder of 22.7M parameters with a head, on SST-2."""
    model = huggingface(id=folder, task=data.task.name, num_classes=2, class_names=data.class_names)
    return Texts(_first(data, num_train), model, batch_size=16)


def gpt2(data: Data, num_train: int) -> Texts:
    """A language model of 4 layers of 128 on the characters of tinyshakespeare."""
    config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 64}
    model = huggingface(config=config, task="causal_lm", num_classes=data.num_classes)
    return Texts(_first(replace(data, task=CausalLM()), num_train), model, batch_size=12)


def _first(data: Data, num_train: int) -> Data:
    """The first samples of each split."""
    parts = {"train": data.train.take(torch.arange(num_train), "train")}
    parts["validation"] = data.validation.take(torch.arange(NUM_VALIDATION), "validation")
    return replace(data, **parts)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The same for all."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)


def _bare(train: Sequence[Batch], validation: Sequence[Batch], is_causal: bool, model: nn.Module) -> None:
    """The loop that everybody writes first."""
    descent = adamw(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, len(train))
    model.train()
    for batch in train:
        loss = _loss(model(**batch.inputs).logits, batch.targets, is_causal)
        descent.zero_grad()
        loss.backward()
        descent.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        sum(float(_loss(model(**b.inputs).logits, b.targets, is_causal)) for b in validation)


def _loss(logits: torch.Tensor, targets: torch.Tensor, is_causal: bool) -> torch.Tensor:
    if not is_causal:
        return F.cross_entropy(logits, targets)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def _ours(data: Data, batch_size: int, device: torch.device, model: nn.Module) -> None:
    """`fit` by the objective of `strategy=train`, with progress asked for, as the command line runs it."""
    objective = Objective({"cross_entropy": CrossEntropy(weight=1.0)})
    bound = objective.bind(model, None, next(iter(data.validation.batches(2))).inputs)
    recipe = Recipe(
        epochs=EPOCHS,
        batch_size=batch_size,
        optimizer=adamw,
        scheduler=cosine,
        evaluation_batch_size=batch_size,
    )
    told: list[Any] = []
    with bound.attached(model, None) as captured:
        comparison = Comparison("", bound, captured, None)

        def loss(model: nn.Module, batch: Batch) -> LossOutput:
            return compared(batch.call(model), batch, data.task, [comparison])

        fit(model, data, loss, recipe, seed=SEED, device=device, on_step=told.append, on_epoch=told.append)


def _trainer(train: Sequence[Batch], validation: Sequence[Batch], is_causal: bool, model: nn.Module) -> None:
    """A sample of its data sets is a whole batch, so that it has the same ones."""
    from transformers import PrinterCallback, Trainer, TrainingArguments, logging

    class Ours(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            targets = inputs.pop("targets")
            output = model(**inputs)
            loss = _loss(logits_of(output), targets, is_causal)
            return (loss, output) if return_outputs else loss

    logging.set_verbosity_error()
    samples = [
        [{**batch.inputs, "targets": batch.targets} for batch in batches] for batches in (train, validation)
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, per_device_train_batch_size=1, per_device_eval_batch_size=1, num_train_epochs=EPOCHS,
            learning_rate=1e-4, weight_decay=0.01, optim="adamw_torch_fused", max_grad_norm=0.0,
            lr_scheduler_type="cosine", logging_strategy="no", save_strategy="no", eval_strategy="epoch",
            report_to=[], disable_tqdm=True, remove_unused_columns=False, prediction_loss_only=True,
            use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False, label_names=["targets"],
        )  # fmt: skip
        trainer: Any = Ours(
            model,
            options,
            data_collator=lambda items: items[0],
            train_dataset=samples[0],
            eval_dataset=samples[1],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

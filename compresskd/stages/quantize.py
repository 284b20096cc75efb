"""Quantize the student: by training with rounded weights, or by rounding alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from compresskd import artifact, tt
from compresskd.compression.calibration import LayerStatistics, calibrate
from compresskd.compression.precision_budget import check_budget, fit_budget
from compresskd.compression.quantization import Quantization
from compresskd.compression.start_quantized import describe, feeds_back, start_quantized
from compresskd.data.draw import draw
from compresskd.engine.strategy import Context, Stage, State, few_samples
from compresskd.kd.objective import Objective
from compresskd.options import Whole, checked, one_of, within
from compresskd.proof import differing_when_rounded
from compresskd.quant.activation import calibrate as calibrate_activations
from compresskd.quant.entropy_penalty import entropy_penalty
from compresskd.quant.feedback import GPTQ
from compresskd.quant.grid import BITS
from compresskd.quant.prepare import freeze, prepare
from compresskd.quant.targets import find_targets
from compresskd.stages.fit import Which, check_objective, teachers_of
from compresskd.stages.fold_batch_norm import fold_batch_norms, with_statistics
from compresskd.stages.train_student import Training, train_student
from compresskd.tasks import Inputs, map_inputs


@checked
@dataclass(frozen=True)
class Quantize:
    """Quantize the student; stands for nothing where no bits are asked for.

    Attributes:
        quantization: the grid, what shares a scale, how it is learned.
        objective: what quantization-aware training minimises.
        epochs: of it, unless `quantization` says otherwise; 0 rounds only.
        default_bits: where nobody asked for any; None then quantizes nothing.
        teacher: as in `Fit`; 'previous' is the student before it was quantized.
    """

    quantization: Quantization
    objective: Objective
    epochs: Whole
    default_bits: Annotated[int, one_of(*BITS)] | None = None
    teacher: Which = "original"

    def expand(self, name: str) -> Mapping[str, Stage]:
        """See `compresskd.engine.strategy.Expandable`: this stage with the bits that count, or none."""
        with within("quantization"):
            quantization = self.quantization.wanted(self.default_bits)
        return (
            {}
            if quantization is None
            else {name: replace(self, quantization=quantization, epochs=self.num_epochs)}
        )

    @property
    def num_epochs(self) -> int:
        """Epochs of training."""
        epochs = self.epochs if self.quantization.epochs is None else self.quantization.epochs
        return epochs if self.quantization.mode == "qat" else 0

    @property
    def needs_teacher(self) -> bool:
        """Whether the run's teacher takes part."""
        return self.num_epochs > 0 and self.objective.needs_teacher and self.teacher != "previous"

    @property
    def training(self) -> Training:
        """What is going to be trained, for a trial beforehand."""
        return Training(
            self.objective,
            self.num_epochs,
            self.teacher,
            self.quantization.learning_rate,
            "quant.learning_rate",
        )

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: patterns fit, granularities too, and the objective finds its features."""
        student = copy.deepcopy(state.student)
        with within("quantization"):
            if self.quantization.batch_norm == "fold":
                generator = torch.Generator().manual_seed(0)
                student = with_statistics(student, generator)
                fold_batch_norms(student, map_inputs(lambda x: _random_like(x, generator), example))
            # inputs are not rounded here: no range was observed, none is needed to see that layers and terms fit
            prepare(student, replace(self.quantization, initial_scale="absmax", activation_bits=None).spec())
            if self.quantization.budget is not None:
                check_budget(student, self.quantization.budget, example, artifact.bytes_of(state.student))
        if self.num_epochs:
            check_objective(self.objective, self.teacher, state, student, example)
        return replace(state, student=student)

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the quantized student; details record each layer's bits, grid and errors."""
        student, quantization = state.student, self.quantization
        teachers, made = teachers_of(self.teacher, state, student), None
        if quantization.batch_norm == "fold":
            context.details["folded_batch_norms"] = fold_batch_norms(student, _samples(context, 2)[0])
        if quantization.budget is not None:
            final = None if self.num_epochs else functools.partial(self._rounded, context)
            quantization, made = fit_budget(student, quantization, context, final=final)
        unrounded = copy.deepcopy(student)
        student = self._rounded(context, student, quantization) if made is None else made
        names = list(context.details["layers"])
        differing = differing_when_rounded(unrounded, student, names, few_samples(unrounded, context))
        if differing:  # a prepared model is not taken apart: once more without them
            quantization = replace(
                quantization, layers=dict.fromkeys(differing, 0) | dict(quantization.patterns)
            )
            student = self._rounded(context, unrounded, quantization)
            context.details["skipped"] |= differing
        if self.num_epochs:
            self._train(student, teachers, context)
        return replace(state, student=student)

    def _rounded(
        self,
        context: Context,
        student: nn.Module,
        quantization: Quantization,
        found: Mapping[str, LayerStatistics] | None = None,
    ) -> nn.Module:
        """The student, changed in place, with weights that are rounded as they are read; details tell of each layer.

        `found` is of calibration samples, by layer; None has them looked at where that is needed.
        """
        start = start_quantized(
            student,
            quantization,
            keep_integers=self.num_epochs == 0,
            covariances=self._covariances(context, student, found),
            seed=context.stage_seed,
        )
        context.details.update(
            epochs=0,
            layers=describe(student, start),
            skipped=self._skipped(student, quantization),
            other_bits=quantization.other_bits,
        )
        prepare(student, quantization.spec(), start=start.tensors)
        if quantization.activation_bits is not None:
            unrounded = calibrate_activations(student, _samples(context, quantization.num_calibration))
            attention = [n for n, m in student.named_modules() if isinstance(m, nn.MultiheadAttention)]
            context.details["float_inputs"] = {
                **dict.fromkeys(unrounded, "another module reads its weight"),
                **dict.fromkeys(attention, "it takes three inputs"),
            }
        return student

    def _covariances(
        self, context: Context, student: nn.Module, found: Mapping[str, LayerStatistics] | None
    ) -> dict[str, Tensor]:
        """Of the inputs of the layers whose rounding weighs errors by them."""
        gptq = self.quantization.rounding == GPTQ
        trains = tt.TTLinear | tt.TTConv2d
        names = [
            name
            for name, module in student.named_modules()
            if (self.quantization.data_aware and isinstance(module, trains)) or (gptq and feeds_back(module))
        ]
        if not names:
            return {}
        if found is None:
            num_samples = self.quantization.num_calibration
            found = calibrate(
                student, names, context.data.train, num_samples=num_samples, seed=context.stage_seed
            )
        known = {name: found[name].covariance for name in names if name in found}
        return {name: covariance for name, covariance in known.items() if covariance is not None}

    def _skipped(self, student: nn.Module, quantization: Quantization) -> dict[str, str]:
        spec = quantization.spec()
        owners = dict.fromkeys(target.owner for target in find_targets(student))
        return {name: "left in floating point by quant.layers" for name in owners if not spec.bits_of(name)}

    def _train(self, student: nn.Module, teachers: Mapping[str, nn.Module], context: Context) -> None:
        quantization = self.quantization
        first_frozen = self.num_epochs - round(quantization.freeze_fraction * self.num_epochs)

        def before_epoch(epoch: int) -> None:
            if epoch >= first_frozen:
                freeze(student)
                if quantization.batch_norm == "freeze":
                    _stop_statistics(student)

        train_student(
            student,
            teachers,
            self.objective,
            context,
            epochs=self.num_epochs,
            learning_rate=quantization.learning_rate,
            penalty=(lambda: quantization.entropy * entropy_penalty(student))
            if quantization.entropy
            else None,
            before_epoch=before_epoch,
        )


def _stop_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random floats of the same shape; token ids and masks as they are."""
    return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor


def _samples(context: Context, num_samples: int) -> list[Inputs]:
    """Batches of inputs of the training split, a seeded draw of `num_samples` together."""
    drawn = draw(context.data.train, num_samples, seed=context.stage_seed)
    return [batch.inputs for batch in drawn.batches(context.recipe.evaluation_batch_size)]

"""Language models: the next token, hidden tokens, or the tokens of another text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compresskd.metric import ACCURACY, BITS_PER_BYTE, PERPLEXITY, Metric
from compresskd.tasks.base import Judged, by_sample
from compresskd.tasks.batch import Batch, Model, call, logits_of, shortened
from compresskd.tasks.classes import IGNORED, TokenClassification, sequence_fault, token_rows
from compresskd.tasks.outputs import ModelOutputs

_SAME = 1e-5  # of the largest output


@dataclass(frozen=True)
class MaskedLM(TokenClassification):
    """The tokens that were hidden: targets [B, L] hold them, -100 elsewhere."""

    name: ClassVar[str] = "masked_lm"
    targets_are: ClassVar[str] = "the tokens that were hidden"
    score_is: ClassVar[str] = "the negative loss in nats a token"
    monitor: ClassVar[Metric] = PERPLEXITY
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, ACCURACY)
    running: ClassVar[Metric | None] = None
    keeps_targets: ClassVar[bool] = False
    keeps_losses: ClassVar[bool] = True

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[N] bool, whether the most probable token is the true one."""
        return logits.argmax(dim=1) == targets

    def output_fault(self, output: Any, batch: Batch, num_outputs: int) -> str | None:
        """Logits are [B, L, V]; a model may have more rows than its tokenizer has tokens."""
        return sequence_fault(output, batch, max(num_outputs, logits_of(output).shape[-1]))

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """Perplexity, the exponential of the mean loss; the share of tokens that are predicted first."""
        return {
            PERPLEXITY.name: math.exp(min(judged.loss, 700.0)),
            ACCURACY.name: float(judged.predictions.double().mean()) if len(judged.predictions) else 0.0,
        }

    def scores(self, judged: Judged) -> Tensor:
        """[S] the negative mean loss of a sample's tokens, in nats."""
        return -by_sample(judged.losses, judged.sample, judged.num_samples)

    def agreement(self, student: Tensor, teacher: Tensor) -> float | None:
        """None: which token was predicted is not kept."""
        return None


@dataclass(frozen=True)
class CausalLM(MaskedLM):
    """The next token: targets [B, L] are the tokens themselves, -100 where none is to be predicted.

    The logits at a position predict the target of the next one. `bits_per_byte` is the total loss in bits over the
    bytes of the text that was predicted: unlike perplexity, it compares models of different tokenizers.
    """

    name: ClassVar[str] = "causal_lm"
    targets_are: ClassVar[str] = "the tokens of a text"
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, BITS_PER_BYTE, ACCURACY)

    def num_rows(self, batch: Batch) -> int:
        """Tokens that have one before them."""
        return int((batch.targets[:, 1:] != IGNORED).sum())

    def rows(self, output: Any, batch: Batch) -> tuple[ModelOutputs, Tensor]:
        """Logits [B, L, V] but the last, each beside the next target."""
        shifted = torch.full_like(batch.targets, IGNORED)
        shifted[:, :-1] = batch.targets[:, 1:]
        return token_rows(self, logits_of(output), shifted, batch)

    @torch.no_grad()
    def model_fault(self, model: Model, batch: Batch) -> str | None:
        """The logits at a position must not depend on the tokens after it: the model would see what it predicts."""
        given = shortened(
            model, batch.inputs
        )  # of a large vocabulary, logits of whole texts take more than the model
        ids = given if isinstance(given, Tensor) else given.get("input_ids")
        if ids is None or ids.is_floating_point() or ids.ndim != 2 or ids.shape[1] < 2:
            return None
        half = ids.shape[1] // 2
        other = torch.cat(
            [ids[:, :half], torch.where(ids == ids.min(), ids.max(), ids.min())[:, half:]], dim=1
        )
        changed = other if isinstance(given, Tensor) else {**given, "input_ids": other}
        before, after = (logits_of(call(model, each))[:, :half] for each in (given, changed))
        if torch.allclose(before, after, rtol=0, atol=_SAME * float(before.abs().amax())):
            return None
        return "a model whose outputs do not depend on the tokens after them, which they are to predict"

    def metrics_of(self, judged: Judged) -> dict[str, float]:
        """Perplexity, and bits per byte where the data know the bytes of the text."""
        values = super().metrics_of(judged)
        if judged.num_bytes:
            bits = judged.loss * len(judged.targets) / math.log(2)
            values[BITS_PER_BYTE.name] = bits / judged.num_bytes
        return values


@dataclass(frozen=True)
class Seq2SeqLM(MaskedLM):
    """The tokens of a text that follows another: targets [B, T] hold them, -100 in the padding.

    The inputs have `decoder_input_ids` [B, T], so that the logits at a position predict the target of the same one.
    """

    name: ClassVar[str] = "seq2seq_lm"
    targets_are: ClassVar[str] = "the tokens of the text that follows"

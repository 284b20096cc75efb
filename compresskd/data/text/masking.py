"""Tokens that are hidden from a model, which is to say what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compresskd.data.text.tokenizer import Tokenizer
from compresskd.tasks import IGNORED

_NAMES = ("[MASK]", "<mask>")  # of the token that stands for a hidden one
_SHOWN, _OTHER = 0.1, 0.1  # of the hidden tokens: those that stay as they are, and that become any token


@dataclass(frozen=True)
class Masking:
    """Hides a share of the tokens of each batch.

    Of the hidden ones, 80 in 100 become the mask token, 10 any token, and 10 stay (Devlin et al. 2019,
    arXiv:1810.04805, section 3.1).

    Attributes:
        share: of all tokens.
        mask_id: the number of the mask token.
        vocabulary_size: the other numbers are below it.
    """

    share: float
    mask_id: int
    vocabulary_size: int

    def __call__(self, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the model sees of ids [B, L], and the targets: the hidden tokens, -100 elsewhere; one at least."""
        draws = torch.rand(2, *ids.shape, generator=generator).to(ids.device)
        others = torch.randint(self.vocabulary_size, ids.shape, generator=generator).to(ids.device)
        hidden = draws[0] <= draws[0].amin().clamp_min(self.share)
        seen = torch.where(draws[1] < 1 - _SHOWN - _OTHER, self.mask_id, others)
        seen = torch.where(draws[1] >= 1 - _SHOWN, ids, seen)
        return torch.where(hidden, seen, ids), torch.where(hidden, ids, IGNORED)


def masking_of(tokenizer: Tokenizer, share: float) -> Masking:
    """With the tokenizer's own mask token, or one number more than it has."""
    rust: Any = getattr(tokenizer, "rust", None)
    known = [] if rust is None else [rust.token_to_id(name) for name in _NAMES]
    own = next((number for number in known if number is not None), None)
    return Masking(share, tokenizer.vocabulary_size if own is None else own, tokenizer.vocabulary_size)

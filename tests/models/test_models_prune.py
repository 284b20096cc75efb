"""Rows of tokens that are left out: what stays computes what it did."""

import pytest
import torch
from refusals import says
from torch import nn

from compresskd import artifact
from compresskd.artifact.content import content_of
from compresskd.models.build import build, spec_of
from compresskd.models.huggingface import HUGGING_FACE
from compresskd.models.prune import with_tokens
from compresskd.models.vocabulary import rows_of
from compresskd.options import OptionError
from compresskd.tasks import call

VOCABULARY = 60
KEPT = [0, 1, 2, 3, 40, 7, 59, 21, 9, 30, 31, 50]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TWO = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "bert": ("text_classification", BERT),
    "roberta": ("masked_lm", {**BERT, "pad_token_id": 1}),
    "albert": ("token_classification", {**BERT, "embedding_size": 16}),
    "gpt2": ("causal_lm", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": 59}),
    "llama": ("causal_lm", {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": True, "eos_token_id": [40, 59]}),
    "t5": ("seq2seq_lm", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}),
    "bart": ("seq2seq_lm", {**TWO, "decoder_start_token_id": 2, "pad_token_id": 1}),
}  # fmt: skip


def made(kind, **config):
    task, options = KINDS[kind]
    chosen = {"model_type": kind, "vocab_size": VOCABULARY, **options, **config}
    classes = VOCABULARY if task.endswith("lm") else 3
    model = build(HUGGING_FACE, {"config": chosen, "task": task, "num_classes": classes}, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases of heads too
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def inputs_of(kind, ids):
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :4]} if KINDS[kind][0] == "seq2seq_lm" else {})


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_for_tokens_that_stay_are_the_same(kind):
    model = made(kind)
    small = with_tokens(model, KEPT)
    assert rows_of(small) == len(KEPT)
    assert not small.training
    ids = torch.randint(2, len(KEPT), (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = call(model, inputs_of(kind, torch.tensor(KEPT)[ids])).logits
        after = call(small, inputs_of(kind, ids)).logits
    torch.testing.assert_close(after, before[..., KEPT] if before.shape[-1] == VOCABULARY else before)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_tied_heads_stay_tied_and_a_file_holds_what_is_left(kind, tmp_path):
    small = with_tokens(made(kind), KEPT)
    tied = {id(value) for name, value in small.state_dict(keep_vars=True).items() if len(value) == len(KEPT)}
    assert len(tied) == 1
    artifact.write_compact(content_of(small), tmp_path / "model.ckd")
    again = artifact.load(tmp_path / "model.ckd")
    assert rows_of(again) == len(KEPT)
    assert artifact.fingerprint(again) == artifact.fingerprint(small)


def test_numbers_of_tokens_in_the_configuration_are_the_new_ones():
    small = spec_of(with_tokens(made("gpt2", bos_token_id=33), KEPT))["kwargs"]["config"]
    assert (small["vocab_size"], small["eos_token_id"], small["bos_token_id"]) == (
        len(KEPT),
        KEPT.index(59),
        None,
    )
    assert spec_of(with_tokens(made("llama"), KEPT))["kwargs"]["config"]["eos_token_id"] == [4, 6]


def test_a_model_with_as_many_rows_is_returned_and_draws_are_left_as_they_were():
    small = with_tokens(made("bert"), KEPT)
    assert with_tokens(small, KEPT) is small
    model, state = made("bert"), torch.get_rng_state()
    with_tokens(model, KEPT)
    assert torch.get_rng_state().equal(state)


def test_what_a_head_lacks_is_still_known():
    model = made("bert")
    model.fresh_parameters = ("classifier.weight",)
    assert with_tokens(model, KEPT).fresh_parameters == ("classifier.weight",)


def test_what_has_no_rows_that_can_be_told_is_refused():
    own = nn.Linear(2, 2)
    own.spec = {"target": "own.Own", "kwargs": {}}
    for model in (
        own,
        build("compresskd.models.mlp.MLP", {"num_classes": 2, "input_shape": [1, 2, 2]}, seed=0),
    ):
        with pytest.raises(OptionError, match="model of transformers"):
            with_tokens(model, KEPT)
    with pytest.raises(OptionError, match=says("config.vocab_size", "60", "99")):
        with_tokens(made("bert"), [*KEPT, 99])
    with pytest.raises(OptionError, match="positions"):
        with_tokens(made("roberta"), [0, 2, 1, 3])

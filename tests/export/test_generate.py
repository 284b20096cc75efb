"""A compressed language model writes what its folded form writes."""

import pytest
import torch

from compresskd import artifact, tt
from compresskd.compression.replacement import carry_out
from compresskd.export.dense import fold
from compresskd.layers import find
from compresskd.models.build import build

_SIZES = {
    "gpt2": {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 64},
    "llama": {
        "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": True,
    },
}  # fmt: skip


def compressed(kind):
    """Of rank 6, its table and its head, which are one, too."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"model_type": kind, "vocab_size": 211, **special, **_SIZES[kind]}
    options = {"config": config, "task": "causal_lm", "num_classes": 211}
    model = build("compresskd.models.huggingface.huggingface", options, seed=0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that the next token is no toss-up
    plan = {layer.name: lambda module: tt.factorize(module, rank=6) for layer in find(model)}
    assert len(carry_out(model, plan).replacements) > 8
    return model.eval()


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("kind", sorted(_SIZES))
def test_generate_equals_that_of_the_folded_form(kind, use_cache, tmp_path):
    model = compressed(kind)
    artifact.write_compact(artifact.content_of(model), tmp_path / "model.ckd", trust=["transformers"])
    read = artifact.load(tmp_path / "model.ckd", trust=["transformers"])
    prompt = torch.arange(3, 11).view(2, 4)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    told = {"attention_mask": torch.ones_like(prompt), **options}
    written = [each.generate(prompt, **told) for each in (read, fold(read), model)]
    assert written[0].shape == (2, 16)
    assert len(written[0][:, 4:].unique()) > 4
    assert torch.equal(written[0], written[1])
    assert torch.equal(written[0], written[2])
    head, table = read.get_output_embeddings(), read.get_input_embeddings()
    assert head.cores is table.cores

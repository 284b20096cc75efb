"""Dropout at the rate of the recipe, while a model is trained."""

import pytest
import torch
from refusals import fault, refused
from torch import nn

from compresskd.training.dropout import dropout, rates_of


class Functional(nn.Module):
    """Keeps a rate and hands it to a function, as modules of transformers do."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.25
        self.dropout_layers = 2
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), self.attention_dropout, self.training)


def model():
    return nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), Functional(), nn.MultiheadAttention(4, 2, dropout=0.1)
    )


def test_every_rate_is_set_and_put_back():
    it = model()
    with dropout(it, 0.3):
        assert [getattr(*found) for found in rates_of(it)] == [0.3] * 3
        assert it[2].dropout_layers == 2
    assert [getattr(*found) for found in rates_of(it)] == [0.5, 0.25, 0.1]
    with dropout(it, None):
        assert [getattr(*found) for found in rates_of(it)] == [0.5, 0.25, 0.1]


def test_rates_are_put_back_after_an_error():
    it = model()
    with pytest.raises(ZeroDivisionError), dropout(it, 0.0):
        raise ZeroDivisionError
    assert [getattr(*found) for found in rates_of(it)] == [0.5, 0.25, 0.1]


def test_a_rate_of_zero_makes_training_mode_equal_to_evaluation():
    it, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), Functional()).train(), torch.randn(8, 4)
    with dropout(it, 0.0):
        assert torch.equal(it(x), it.eval()(x))
    assert not torch.equal(it.train()(x), it.eval()(x))


def test_transformers_take_it(make_bert):
    it, ids = make_bert.train(), torch.randint(0, 50, (2, 6))
    with dropout(it, 0.0):
        trained = it(input_ids=ids).logits
    assert torch.equal(trained, it.eval()(input_ids=ids).logits)


@pytest.fixture
def make_bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))


def test_a_training_is_another_with_it(train, make_model, make_recipe):
    weights = {}
    for rate in (None, 0.3, 0.0):
        model, _ = train(model=make_model(), recipe=make_recipe(dropout=rate))
        assert model[4].p == 0.3
        weights[rate] = model[5].weight
    assert torch.equal(weights[None], weights[0.3])
    assert not torch.equal(weights[None], weights[0.0])


def test_a_model_without_dropout_is_told(run_cli):
    refused(run_cli("strategy=distill", "train.dropout=0.1"), fault("train.dropout", "0.1", "null"))
    refused(run_cli("strategy=distill", "train.dropout=1.0"), fault("train.dropout", "1"))

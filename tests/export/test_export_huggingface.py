"""`--to huggingface`: a folder that transformers loads, whose outputs are those of the compressed model."""

import json

import pytest
import torch

from compresskd import artifact, layers
from compresskd.artifact.content import content_of
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.export.errors import ExportError
from compresskd.export.export import export
from compresskd.export.samples import Samples
from compresskd.export.source import Source
from compresskd.models import huggingface
from compresskd.models.build import build
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare

WORDS = ["[PAD]", "good", "bad", "film", "a"]
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]"])
    return made.to_str()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny BERT at rank 4 and 4 bits, as it comes from a file."""
    options = {
        "config": BERT, "task": "text_classification", "num_classes": 2, "class_names": ["no", "yes"],
        "vocabulary_size": len(WORDS),
    }  # fmt: skip
    model = build(huggingface.HUGGING_FACE, options, seed=0).eval()
    chosen = {layer.name: layer.module for layer in layers.find(model) if layer.obstacle is None}
    assert carry_out(
        model, plan_layers(chosen, Size(4), Method("tensor_train", None, {}), model, None)
    ).replacements
    prepare(model, QuantSpec(bits=4))
    about = {
        "task": "text_classification", "class_names": ["no", "yes"],
        "preprocessing": {
            "kind": "text", "columns": ["text"], "max_length": 16, "inputs": ["input_ids", "attention_mask"],
            "padding_id": 0, "tokenizer": {"json": tokenizer(), "padding_id": 0, "has_types": False},
        },
    }  # fmt: skip
    content = content_of(model, about)
    quantized = {k: v for k, v in content.tensors.items() if isinstance(v, QuantizedTensor)}
    return Source(tmp_path_factory.mktemp("m"), artifact.build(content), quantized, (), content)


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    ids = torch.randint(1, len(WORDS), (5, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = tmp_path_factory.mktemp("out") / "exported"
    exported = export(source, "huggingface", out, Samples(inputs, "5 texts"), timed=False)
    assert exported.agreement.largest_difference < 1e-5
    return out


def test_transformers_loads_the_folder_with_its_tokenizer(source, folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "no", 1: "yes"}
    batch = AutoTokenizer.from_pretrained(folder)(["a good film", "bad"], return_tensors="pt", padding=True)
    assert batch["input_ids"].tolist() == [[4, 1, 3], [2, 0, 0]]
    with torch.no_grad():
        theirs = model(**batch).logits
        ours = source.model(**batch).logits
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_the_factorized_form_lies_beside_it(folder):
    model = artifact.load(folder / "model.ckd")
    inputs = model.preprocess(["a good film", "bad"])
    assert inputs["input_ids"].tolist() == [[4, 1, 3], [2, 0, 0]]
    assert (folder / "model.ckd").stat().st_size < (folder / "model.safetensors").stat().st_size / 2


def test_the_card_says_how_it_is_loaded(folder):
    text = (folder / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert "compresskd.load" in text
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"


def test_a_model_of_another_library_is_refused(tmp_path):
    content = content_of(
        build("compresskd.models.mlp.MLP", {"hidden": [4], "num_classes": 2, "input_shape": [3]}, seed=0)
    )
    source = Source(tmp_path, artifact.build(content), {}, (3,), content)
    with pytest.raises(ExportError, match="no model of transformers"):
        export(source, "huggingface", tmp_path / "out", Samples(torch.randn(2, 3), "two"), timed=False)
    assert not (tmp_path / "out").exists()

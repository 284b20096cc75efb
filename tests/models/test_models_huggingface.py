import dataclasses
import json

import pytest
import torch
import transformers
from refusals import name_of, says
from torch import nn

from compresskd import artifact, layers
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.kd.capture import ActivationCapture
from compresskd.layers import surgery
from compresskd.measure import macs
from compresskd.models import huggingface
from compresskd.models.build import build, spec_of
from compresskd.models.hub_folder import hub_folder
from compresskd.models.vocabulary import check_same_vocabulary, check_tokenizer, check_vocabulary
from compresskd.tasks import (
    Batch,
    CausalLM,
    Classification,
    MaskedLM,
    Seq2SeqLM,
    TextClassification,
    TokenClassification,
    call,
    logits_of,
)

VOCABULARY = 60
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TWO = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
TEXT, IMAGES = TextClassification(), [3, 32, 32]
# the task, the architecture, the shape of a sample where it is of no text
KINDS = {
    "bert": (TEXT, BERT, ()),
    "distilbert": (TEXT, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}, ()),
    "roberta": (MaskedLM(), BERT, ()),
    "albert": (TokenClassification(), {**BERT, "embedding_size": 16}, ()),
    "electra": (TEXT, {**BERT, "embedding_size": 16}, ()),
    "gpt2": (CausalLM(), {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, ()),
    "llama": (CausalLM(), {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": True}, ()),
    "qwen2": (TEXT, {**BERT, "num_key_value_heads": 1, "pad_token_id": 0}, ()),
    "opt": (CausalLM(), {**BERT, "word_embed_proj_dim": 16, "max_position_embeddings": 64}, ()),
    "t5": (Seq2SeqLM(), {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}, ()),
    "bart": (Seq2SeqLM(), {**TWO, "max_position_embeddings": 64}, ()),
    "vit": (Classification(), {**BERT, "patch_size": 8}, IMAGES),
    "clip": (Classification(), {"vision_config": {**BERT, "patch_size": 8, "image_size": 32}}, IMAGES),
    "whisper": (Classification(), {**TWO, "num_mel_bins": 8, "max_source_positions": 16, "vocab_size": 90}, [8, 32]),
}  # fmt: skip


def options_of(kind, **others):
    task, config, shape = KINDS[kind]
    is_language = isinstance(task, MaskedLM)
    config = {k: v for k, v in config.items() if kind != "opt" or k != "intermediate_size"}
    return {
        "config": {"model_type": kind, **config}, "task": task.name, "input_shape": shape,
        "num_classes": VOCABULARY if is_language else 3, "vocabulary_size": None if shape else VOCABULARY, **others,
    }  # fmt: skip


def made(kind, seed=0, **others):
    return build(huggingface.HUGGING_FACE, options_of(kind, **others), seed=seed).eval()


def batch_of(kind):
    task, _, shape = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    if shape:
        return Batch(torch.randn(2, *shape, generator=generator), torch.tensor([0, 2]), torch.arange(2), 0)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    targets = {TEXT: torch.tensor([0, 2]), TokenClassification(): ids % 3}.get(task, ids)
    if task == Seq2SeqLM():
        inputs["decoder_input_ids"] = ids[:, :5]
        targets = ids[:, 1:6]
    return Batch(inputs, targets, torch.arange(2), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_answers_its_task_and_is_rebuilt_from_its_configuration_alone(kind, tmp_path):
    model, batch, task = made(kind), batch_of(kind), KINDS[kind][0]
    with torch.no_grad():
        output = batch.call(model)
    assert task.output_fault(output, batch, options_of(kind)["num_classes"]) is None
    rows, targets = task.rows(output, batch)
    assert task.label_losses(rows.logits, targets).isfinite().all()
    assert macs.count(model, batch.inputs).unknown is None
    assert not getattr(model.config, "use_cache", False)

    spec = json.loads(json.dumps(spec_of(model)))
    assert spec["target"] == "compresskd.models.huggingface.from_config"
    assert build(spec["target"], spec["kwargs"], seed=0).spec == spec  # which says the same of itself
    artifact.save(model, tmp_path / "model")
    artifact.write_compact(artifact.content_of(model), tmp_path / "model.ckd")
    for path in (tmp_path / "model", tmp_path / "model.ckd"):
        loaded = artifact.load(path)
        assert type(loaded) is type(model)
        assert len(list(loaded.parameters())) == len(list(model.parameters()))  # what is tied is one
        with torch.no_grad():
            torch.testing.assert_close(logits_of(batch.call(loaded)), logits_of(output), rtol=0, atol=0)


def test_values_follow_the_seed():
    assert artifact.fingerprint(made("bert")) == artifact.fingerprint(made("bert"))
    assert artifact.fingerprint(made("bert")) != artifact.fingerprint(made("bert", seed=1))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5"])
def test_blocks_are_captured(kind):
    model, batch = made(kind), batch_of(kind)
    name = {"gpt2": "transformer.h.1", "llama": "model.layers.1", "bert": "bert.encoder.layer.1"}.get(
        kind, "encoder.block.1"
    )
    capture = ActivationCapture([name])
    with capture.attached(model), torch.no_grad():
        output = batch.call(model)
        seen = capture.view(output)
    assert seen.features[name].shape == (2, 7, 32)


def test_tied_weights_stay_one_through_factorization_loading_and_a_state(tmp_path):
    model, batch = made("llama"), batch_of("llama")
    chosen = {layer.name: layer.module for layer in layers.find(model)}
    carry_out(model, plan_layers(chosen, Size(4), Method("tensor_train", None, {}), model, lambda _: 0.0))
    table, head = model.model.embed_tokens, model.lm_head
    assert surgery.structure(model)["lm_head"]["weights_of"] == "model.embed_tokens"
    artifact.save(model, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    assert loaded.lm_head.cores[0] is loaded.model.embed_tokens.cores[0]
    other = artifact.load(tmp_path / "model")
    with torch.no_grad():
        for core in table.cores:
            core.add_(1.0)
    other.load_state_dict(model.state_dict())
    assert head.cores[0] is table.cores[0]
    with torch.no_grad():
        torch.testing.assert_close(batch.call(other).logits, batch.call(model).logits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of texts as transformers writes it."""
    path = tmp_path_factory.mktemp("hub") / "bert"
    made("bert", class_names=["bad", "fair", "good"]).save_pretrained(path)
    return path


def of_folder(folder, **others):
    known = {"task": "text_classification", "num_classes": 3, "vocabulary_size": VOCABULARY}
    return build(huggingface.HUGGING_FACE, {"id": str(folder), **known, **others}, seed=0)


def node(folder, **others):
    return {"_target_": huggingface.HUGGING_FACE, "id": str(folder), "task": "text_classification",
            "num_classes": 3, "config": None, **others}  # fmt: skip


def test_a_folder_gives_its_weights_and_says_nothing_of_itself(folder):
    model = of_folder(folder)
    assert artifact.fingerprint(model) == artifact.fingerprint(made("bert"))
    assert model.fresh_parameters == ()
    assert str(folder) not in json.dumps(spec_of(model))
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert huggingface.is_trained_for(node(folder))


def test_what_the_weights_lack_is_fresh_and_named(folder, tmp_path):
    model = of_folder(folder, num_classes=5)
    assert model.fresh_parameters == ("classifier.bias", "classifier.weight")
    assert model.classifier.weight.shape == (5, 32)
    assert not huggingface.is_trained_for(node(folder, num_classes=5))
    made("bert").bert.save_pretrained(tmp_path)  # an encoder without a head
    assert of_folder(tmp_path).fresh_parameters == ("classifier.bias", "classifier.weight")
    assert not huggingface.is_trained_for(node(tmp_path))
    torch.testing.assert_close(
        of_folder(tmp_path).bert.state_dict(), made("bert").bert.state_dict(), rtol=0, atol=0
    )


def test_weights_may_be_left_out_and_options_changed(folder):
    fresh = of_folder(folder, pretrained=False, config={"num_hidden_layers": 1, "hidden_dropout_prob": 0.3})
    assert artifact.fingerprint(fresh) != artifact.fingerprint(of_folder(folder))
    assert len(fresh.bert.encoder.layer) == 1
    assert fresh.config.hidden_dropout_prob == 0.3
    assert not huggingface.is_trained_for(node(folder, pretrained=False))
    assert of_folder(folder, attn_implementation="eager").config._attn_implementation == "eager"


def test_the_fingerprint_of_a_folder_is_of_its_files_wherever_they_are(folder, tmp_path):
    of_folder(folder).save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text((folder / "config.json").read_text())
    assert hub_folder(str(tmp_path / "copy")).fingerprint == hub_folder(str(folder)).fingerprint
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"other")
    assert hub_folder(str(tmp_path / "copy")).fingerprint != hub_folder(str(folder)).fingerprint


def _config(**others):
    return {"id": None, "config": {"model_type": "bert", **BERT, **others}}


REFUSED = [
    (_config(model_type="brt"), says("config.model_type", "'brt'", "bert")),
    (_config(num_hiden_layers=2), says("config.num_hiden_layers", "num_hidden_layers")),
    (_config(num_labels=4), says("config.num_labels", "data")),
    (_config(hidden_size="wide"), says("config", "hidden_size")),
    (_config(auto_map={"AutoModel": "code.Model"}), says("config.auto_map")),
    ({"id": None, "config": {"model_type": "timm_wrapper", "architecture": "resnet18"}}, says("config.model_type")),
    ({"id": None, "config": {"hidden_size": 8}}, says("config", "model_type")),
    ({"id": None}, says("id", "null")),
    ({"id": "/no/such/folder"}, says("id", "/no/such/folder")),
    ({"config": {"hidden_size": 64}}, says("config", "shapes")),
    ({"class_names": ["good", "fair", "bad"]}, says("id", "order")),
    ({"task": "seq2seq_lm", "num_classes": VOCABULARY}, says("config.model_type", "'bert'", "Seq2SeqLM")),
    ({"auto": "AutoModelForPreTraining"}, says("auto", "AutoModelForCausalLM")),
    ({"attn_implementation": "kernels-community/flash-attn"}, says("attn_implementation", "sdpa")),
]  # fmt: skip


@pytest.mark.parametrize(("others", "message"), REFUSED, ids=[name_of(message) for _, message in REFUSED])
def test_refused_with_the_option_that_cannot_be(others, message, folder):
    with pytest.raises(ValueError, match=message):
        of_folder(folder, **others)


def test_a_folder_that_brings_code_is_refused_and_nothing_of_it_runs(folder, tmp_path):
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "of_my_own", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(ValueError, match=says("id", "of_my_own", "code", "student=custom")):
        of_folder(tmp_path)
    native = own | {"model_type": "bert"}  # then transformers' own code is run, as it would do itself
    (tmp_path / "config.json").write_text(json.dumps(config | native))
    assert type(of_folder(tmp_path)).__module__.startswith("transformers.models.bert")


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        ("compresskd.models.huggingface.huggingface", {}, "no torch.nn.Module"),
        ("transformers.AutoModel.from_pretrained", {}, "transformers"),
        (None, {"auto_map": {"AutoModelForSequenceClassification": "x--code.M"}}, "auto_map"),
        (None, {"num_hidden_layers": 10**8}, "num_hidden_layers"),
        (None, {"vocab_size": 10**12}, "proportion"),
    ],
    ids=["reads a folder", "another library", "code", "layers", "rows"],
)
def test_a_model_file_cannot_act(target, change, message):
    content = artifact.content_of(made("bert"))
    kwargs = content.architecture["kwargs"]
    hostile = {
        "target": target or content.architecture["target"],
        "kwargs": {**kwargs, "config": {**kwargs["config"], **change}},
    }
    with pytest.raises(ValueError, match=message):
        artifact.build(dataclasses.replace(content, architecture=hostile))


def test_vocabularies_are_compared():
    model = made("gpt2")
    check_vocabulary(model, VOCABULARY)
    check_vocabulary(nn.Linear(2, 2), 10**6)  # which says nothing of tokens
    with pytest.raises(ValueError, match=says("config.vocab_size", str(VOCABULARY), str(VOCABULARY + 1))):
        check_vocabulary(model, VOCABULARY + 1)
    other = made(
        "gpt2", config={"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 80}
    )
    check_same_vocabulary({"teacher": model, "student": model})
    with pytest.raises(ValueError, match=says("config.vocab_size", "80", "60")):
        check_same_vocabulary({"teacher": model, "student": other})


def test_tokenizers_are_compared(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")

    def described(words):
        vocabulary = {word: number for number, word in enumerate(words)}
        return {"json": tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a")).to_str()}

    check_tokenizer(tmp_path, described("abc"))  # there is none to compare with
    (tmp_path / "tokenizer.json").write_text(described("abc")["json"])
    check_tokenizer(tmp_path, described("abc"))
    for other in (described("acb"), {"characters": "abc"}):
        with pytest.raises(ValueError, match=says("id", "token", "data.tokenizer")):
            check_tokenizer(tmp_path, other)


def test_every_task_has_its_head():
    heads = {
        kind: type(made(kind)).__name__.partition("For")[2] for kind in ("bert", "albert", "roberta", "gpt2")
    }
    assert heads == {
        "bert": "SequenceClassification", "albert": "TokenClassification", "roberta": "MaskedLM", "gpt2": ""
    }  # fmt: skip
    assert call(made("vit"), batch_of("vit").inputs).logits.shape == (2, 3)


def test_a_gguf_file_without_the_packages_that_read_it_is_refused_with_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr("compresskd.models.hub_folder.find_spec", lambda name: None)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=says("id", "pip install gguf accelerate")):
        hub_folder(str(tmp_path))


def test_an_import_that_fails_inside_transformers_is_told_with_its_cause(monkeypatch):
    class Broken(dict):
        def __contains__(self, key):
            return True

        def __getitem__(self, key):
            try:
                raise RuntimeError("operator torchvision::nms does not exist")
            except RuntimeError as error:
                raise ModuleNotFoundError("Could not import module 'BertModel'") from error

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "_model_mapping", Broken())
    with pytest.raises(ValueError, match=r"bert .*nms does not exist; uninstall torchvision"):
        huggingface.huggingface(
            id=None, config={"model_type": "bert"}, num_classes=2, task="text_classification"
        )

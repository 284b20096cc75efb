"""`data.prune_vocabulary` from the command to the exported folder: the numbers of tokens agree everywhere."""

import json
from pathlib import Path

import pytest
import torch
from refusals import fault, refused
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import compresskd
from compresskd.models.build import build
from compresskd.models.huggingface import HUGGING_FACE
from compresskd.run import read_record

WORDS = [
    "a", "the", "film", "play", "story", "was", "is", "never", "always", "good", "bad", "dull", "bright", "fine",
    "awful", "and", "but", "it", "we", "saw",
]  # fmt: skip
OTHERS = [f"{first}{second}" for first in ("un", "over", "re", "mis") for second in WORDS]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SMALL = (
    "measure.latency=false", "rank=4", "epochs=1", "train.max_steps=3", "teacher_fit.train.max_steps=3",
    "compress.num_calibration=16", "train.batch_size=16", "teacher_fit.train.batch_size=16",
)  # fmt: skip


def sentence(row):
    return " ".join(WORDS[(row * step + row // 7) % len(WORDS)] for step in (1, 3, 5, 7, 11))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A classifier with the tokenizer of more words than the texts have, and texts with a class each."""
    root = tmp_path_factory.mktemp("pruned")
    rust = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    lines = [*map(sentence, range(200)), " ".join(OTHERS)]
    rust.train_from_iterator(
        lines * 3, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    rust.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    config = {"model_type": "bert", "vocab_size": rust.get_vocab_size(), "pad_token_id": 0, **SIZES}
    options = {
        "config": config,
        "task": "text_classification",
        "num_classes": 2,
        "class_names": ["no", "yes"],
    }
    build(HUGGING_FACE, options, seed=1).save_pretrained(root / "bert")
    rust.save(str(root / "bert" / "tokenizer.json"))
    (root / "bert" / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "[PAD]", "model_max_length": 32})
    )
    rows = [{"text": sentence(row), "label": ["no", "yes"]["good" in sentence(row)]} for row in range(200)]
    rows[-5]["text"] = "a misfilm"
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "lines.txt").write_text("a good film\nan overgood film and a misplay\n")
    return root


def lines(root, *more):
    return (
        "task=text_classification", f"teacher.id={root / 'bert'}", "student=from_teacher",
        f"data.path={root / 'texts.jsonl'}", "data.allow_overlap=true", *SMALL, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ended(root, tmp_path_factory):
    """A compressed model of the tokens that are left."""
    from compresskd.cli import main

    run = tmp_path_factory.mktemp("runs") / "run"
    assert (
        main([*lines(root, "strategy=compress", "data.prune_vocabulary=true", f"hydra.run.dir={run}")]) == 0
    )
    return run


def texts():
    return ["a good film", "an overgood film and a misplay", "dull"]


@pytest.mark.slow
def test_the_record_and_the_file_say_what_is_left(root, ended):
    data = read_record(ended).data
    kept, size = data["vocabulary"]["kept"], data["vocabulary"]["of"]
    assert kept < size == json.loads((root / "bert" / "config.json").read_text())["vocab_size"]
    assert data["vocabulary"]["lost"]["train"] == 0
    model = compresskd.load(ended / "model" / "model.ckd")
    assert model.config.vocab_size == kept
    inputs = model.preprocess(texts())
    assert int(inputs["input_ids"].max()) < kept
    again = compresskd.load(ended).preprocess(texts())
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    sizes = read_record(ended).stages[-1]["size"]
    assert 0 < sizes["tokenizer_bytes"] < sizes["file_bytes"]


@pytest.mark.slow
def test_the_teacher_says_what_the_whole_one_says(root, ended, run_cli):
    outcome = run_cli(*lines(root, "strategy=compress", "hydra.run.dir=whole"))
    assert outcome.status == 0, outcome.err
    whole, ours = (read_record(Path(each)).teacher["metrics"] for each in ("whole", ended))
    assert whole["test_accuracy"] == ours["test_accuracy"]
    assert abs(whole["test_loss"] - ours["test_loss"]) < 1e-5
    assert (
        read_record(Path("whole")).teacher["size"]["file_bytes"]
        > read_record(ended).teacher["size"]["file_bytes"]
    )


@pytest.mark.slow
def test_a_run_is_scored_again_and_predicts(root, ended, run_cli, work):
    outcome = run_cli("evaluate", str(ended))
    assert outcome.status == 0, outcome.err
    outcome = run_cli("predict", str(ended), str(root / "lines.txt"))
    assert outcome.status == 0, outcome.err
    assert run_cli("plan", *lines(root, "data.prune_vocabulary=10")).status == 0


@pytest.mark.slow
def test_an_exported_folder_gives_the_same_numbers(ended, run_cli, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    outcome = run_cli("export", str(ended), "--to", "huggingface", "--out", str(tmp_path / "out"))
    assert outcome.status == 0, outcome.err + outcome.out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model, ours = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), compresskd.load(ended)
    theirs = tokenizer(texts(), padding=True, return_tensors="pt")
    inputs = ours.preprocess(texts())
    assert theirs["input_ids"].equal(inputs["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_weights_of_a_file_may_be_of_all_tokens_or_of_those_that_are_left(root, ended, run_cli, tmp_path):
    """A run without latency, of a student that is the teacher, has its weights in the end."""
    whole = root / "bert" / "model.safetensors"
    chosen = ["strategy=train", "epochs=0", "data.prune_vocabulary=true", "measure.latency=false"]
    base = [each for each in lines(root) if not each.startswith(("teacher.id", "student="))]
    base += [*chosen, f"data.tokenizer={root / 'bert'}", "student=huggingface"]
    fresh = f"student.config={{model_type: bert, {', '.join(f'{k}: {v}' for k, v in SIZES.items())}}}"
    outcome = run_cli(*base, f"student.id={root / 'bert'}", "hydra.run.dir=folder")
    assert outcome.status == 0, outcome.err
    left = "folder/model/model.safetensors"
    cases = {"all": whole, "left": left}
    for name, weights in cases.items():
        for how, student in {"fresh": [fresh], "of": [f"student.id={root / 'bert'}"]}.items():
            outcome = run_cli(*base, *student, f"student.weights={weights}", f"hydra.run.dir={name}_{how}")
            assert outcome.status == 0, outcome.err
            prints = [
                read_record(Path(each)).stages[-1]["fingerprint"] for each in ("folder", f"{name}_{how}")
            ]
            assert prints[0] == prints[1]
    outcome = run_cli(*lines(root, "data.prune_vocabulary=true", f"teacher.weights={whole}", "strategy=compress",
                             "hydra.run.dir=teacher"))  # fmt: skip
    assert outcome.status == 0, outcome.err
    prints = [read_record(Path(each)).teacher["fingerprint"] for each in ("teacher", ended)]
    assert prints[0] == prints[1]


@pytest.mark.slow
def test_a_teacher_is_reused_for_the_tokens_that_it_was_trained_on_alone(root, run_cli, work):
    keys = []
    for number, wanted in enumerate(("true", "false", "3", "true")):
        more = [f"data.prune_vocabulary={wanted}", "teacher_fit.epochs=1", "strategy=compress"]
        outcome = run_cli(*lines(root, *more, f"hydra.run.dir=run{number}", "outputs_dir=outputs"))
        assert outcome.status == 0, outcome.err
        keys.append(read_record(Path(f"run{number}")).teacher)
    assert len({each["key"] for each in keys}) == 3
    assert [each["source"] for each in keys] == ["trained"] * 3 + ["reused"]


@pytest.mark.slow
def test_words_of_texts_without_labels_stay_for_the_teacher_as_well(root, run_cli, work):
    (work / "more.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{word} misplay"}) for word in OTHERS[:9])
    )
    more = ("data.prune_vocabulary=true", "data.unlabelled_path=more.jsonl", "outputs_dir=outputs")
    outcome = run_cli(*lines(root, "strategy=distill", "teacher_fit.epochs=1", *more, "hydra.run.dir=run"))
    assert outcome.status == 0, outcome.err
    record = read_record(Path("run"))
    own = read_record(Path(record.teacher["directory"]))
    assert own.data["vocabulary"] == record.data["vocabulary"]
    assert "unlabelled" in record.data
    assert "unlabelled" not in own.data
    outcome = run_cli("evaluate", record.teacher["directory"])
    assert outcome.status == 0, outcome.err + outcome.out
    alone = lines(root, "strategy=train", "data.unlabelled_path=more.jsonl")
    refused(run_cli(*alone), fault("data.unlabelled_path", "nothing else would see it"))


@pytest.mark.slow
def test_a_language_model_is_scored_over_what_is_left(root, run_cli, work, tmp_path):
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rust.train_from_iterator([*map(sentence, range(200)), " ".join(OTHERS)], trainer)
    config = {
        "model_type": "gpt2",
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 2,
        "vocab_size": rust.get_vocab_size(),
    }
    options = {"config": config, "task": "causal_lm", "num_classes": rust.get_vocab_size()}
    build(HUGGING_FACE, options, seed=1).save_pretrained(tmp_path / "gpt")
    rust.save(str(tmp_path / "gpt" / "tokenizer.json"))
    (tmp_path / "story.txt").write_text("\n".join(map(sentence, range(300))))
    outcome = run_cli(
        "task=causal_lm", "teacher=huggingface", "data=text_blocks", "student=from_teacher",
        f"data.path={tmp_path / 'story.txt'}", f"teacher.id={tmp_path / 'gpt'}",
        "data.block_size=16", "data.prune_vocabulary=20", "strategy=compress", *SMALL,
        "hydra.run.dir=run",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = read_record(Path("run"))
    assert record.data["vocabulary"]["kept"] < rust.get_vocab_size()
    (notice,) = (each for each in record.data["notices"] if each["kind"] == "pruned_vocabulary")
    assert "bits per byte" in notice["text"]
    assert record.teacher["metrics"]["test_bits_per_byte"] > 0
    model = compresskd.load("run")
    assert model.get_output_embeddings().out_features == record.data["vocabulary"]["kept"]
    assert model.preprocess([sentence(3)])["input_ids"].shape[0] == 1


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_anything_is_trained(root, run_cli):
    key = "data.prune_vocabulary"
    for value in ("0", "-1", "some", "0.5", "null"):
        refused(run_cli(*lines(root, f"{key}={value}")), fault(key, value))
    characters = [f"{key}=true", "data.tokenizer=characters", "teacher=bert_4l128"]
    refused(run_cli(*lines(root, *characters)), fault(key, "false"))
    own = [f"{role}=custom" for role in ("teacher", "student")]
    own += [f"{role}._target_=text_models.TextClassifier" for role in ("teacher", "student")]
    typed = [each for each in lines(root) if not each.startswith(("teacher.id", "student="))]
    outcome = run_cli(
        *typed, *own, f"{key}=true", f"data.tokenizer={root / 'bert'}", "+teacher.vocabulary=500"
    )
    refused(outcome, fault("teacher", "TextClassifier", "transformers"))
    refused(run_cli("data=synthetic", f"{key}=true"), key)

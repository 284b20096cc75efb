import gc
import json

import pytest
import torch
from datasets import ClassLabel, Features, Value
from refusals import says
from text_sets import SENTENCES, kinds, sentences
from tokenizers import Tokenizer, normalizers

from compresskd.data.text.texts import text

OPTIONS = {**SENTENCES, "tokenizer": "bytes"}


def load(**options):
    return text(**{**OPTIONS, **options})


def decoded(split):
    """Each text of a split, of bytes."""
    found = []
    for batch in split.batches(4):
        for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
            found.append(bytes(ids[mask == 1].tolist()).decode())
    return found


def test_a_folder_of_parquet_files(labelled):
    data = load(path=labelled)
    assert (data.class_names, data.num_classes, data.input_shape) == (("even", "odd"), 2, ())
    assert [len(split) for split in (data.train, data.validation, data.test)] == [60, 20, 20]
    for split, count, start in ((data.train, 60, 0), (data.validation, 20, 100), (data.test, 20, 200)):
        texts, labels = sentences(count, start)
        assert decoded(split) == texts
        assert split.targets.tolist() == labels
    assert data.notices == ()
    assert data.preprocessing == {
        "kind": "text", "columns": ["sentence"], "max_length": None, "tokenizer": {"bytes": True},
        "vocabulary_size": 256, "padding_id": 0, "inputs": ["input_ids", "attention_mask"],
    }  # fmt: skip
    assert load(path=labelled).fingerprint == data.fingerprint
    assert load(path=labelled, max_length=4).fingerprint != data.fingerprint


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # `datasets` leaves csv files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_one_file_is_cut_by_the_fractions(tmp_path, suffix):
    texts, labels = sentences(50)
    lines = [json.dumps({"sentence": a, "label": "ab"[b]}) for a, b in zip(texts, labels, strict=True)]
    if suffix == "csv":
        lines = ["sentence,label", *(f"{a},{'ab'[b]}" for a, b in zip(texts, labels, strict=True))]
    (tmp_path / f"it.{suffix}").write_text("\n".join(lines) + "\n")
    data = load(path=str(tmp_path / f"it.{suffix}"))
    assert data.class_names == ("a", "b")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 8, 10]
    assert sorted(decoded(data.train) + decoded(data.validation) + decoded(data.test)) == sorted(texts)
    assert data.test.targets.bincount().tolist() == [5, 5]
    other = load(path=str(tmp_path / f"it.{suffix}"), split_seed=1)
    assert decoded(other.test) == decoded(data.test)
    assert decoded(other.validation) != decoded(data.validation)
    gc.collect()


def test_without_a_test_split_validation_is_the_test(folder):
    train, test = ({"sentence": t, "label": y} for t, y in (sentences(40), sentences(10, 100)))
    data = load(path=folder(train=train, validation=test))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 8, 10]
    assert kinds(data) == ["splits"]


def test_pairs_have_segments(folder, tokenizer):
    texts, labels = sentences(30)
    columns = {"sentence": texts, "second": [*texts[1:], texts[0]], "label": labels}
    data = load(path=folder(all=columns), pair_column="second", tokenizer=tokenizer)
    (batch,) = data.test.batches(6)
    assert list(batch.inputs) == ["input_ids", "token_type_ids", "attention_mask"]
    ids, types, mask = batch.inputs.values()
    assert ((ids == 2).sum(1) == 2).all()  # [SEP]
    assert (types[mask == 0] == 0).all()
    assert (types.sum(1) > 0).all()
    assert (ids[mask == 0] == 3).all()  # [PAD]


def test_what_is_cut_off_is_counted(labelled, tokenizer):
    data = load(path=labelled, tokenizer=tokenizer, max_length=5)
    assert int(data.train.lengths.max()) == 5
    counted = {notice.split: notice.count for notice in data.notices if notice.kind == "truncated"}
    whole = load(path=labelled, tokenizer=tokenizer, max_length=100)
    assert counted["train"] == int((whole.train.lengths > 5).sum())
    assert int(load(path=labelled, tokenizer=tokenizer).train.lengths.max()) <= 12  # what the tokenizer says


def test_numbers_are_standardized_by_train(folder):
    texts, _ = sentences(50)
    values = [float(i) for i in range(50)]
    path = folder(all={"sentence": texts, "a": values, "b": [v**2 for v in values]})
    data = load(path=path, label_column=["a", "b"], asks="values")
    assert (data.num_classes, data.class_names) == (2, ("a", "b"))
    targets = data.train.targets
    assert torch.allclose(targets.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(targets.std(0, correction=0), torch.ones(2))
    said = data.preprocessing["targets"]
    back = data.test.targets.double() * torch.tensor(said["std"]) + torch.tensor(said["mean"])
    first = int(decoded(data.test)[0].rpartition("x")[2])
    assert back[0].tolist() == pytest.approx([first, first**2], rel=1e-5)


def test_several_columns_are_labels(folder):
    texts, labels = sentences(50)
    path = folder(all={"sentence": texts, "a": labels, "b": [1 - y for y in labels]})
    data = load(path=path, label_column=["a", "b"], asks="labels")
    assert data.num_classes == 2
    assert data.train.targets.dtype == torch.float32
    assert (data.train.targets.sum(1) == 1).all()


def test_weights_of_samples_and_classes_are_those_of_train_alone(folder):
    texts, _ = sentences(50)
    labels = [int(i % 5 == 0) for i in range(50)]
    path = folder(all={"sentence": texts, "label": labels, "w": [0.5] * 50})
    data = load(path=path, weight_column="w", class_weights="balanced")
    (batch,) = data.train.batches(32, epoch=0)
    shares = data.train.targets.bincount()
    expected = 0.5 * 32 / (2 * shares[batch.targets])
    torch.testing.assert_close(batch.weights, expected)
    assert data.validation.weights is None
    given = load(path=path, class_weights=[1, 3]).train
    assert given.weights.tolist() == [1.0 + 2 * y for y in given.targets.tolist()]


def test_empty_texts_are_named_or_left_out(folder):
    texts, labels = sentences(50)
    texts[3], texts[17] = "  ", None
    path = folder(all={"sentence": texts, "label": labels})
    with pytest.raises(ValueError, match=r"2 of 50 texts .*: row 3; row 17.*data.skip_bad=true"):
        load(path=path)
    data = load(path=path, skip_bad=True)
    assert sum(map(len, (data.train, data.validation, data.test))) == 48
    (skipped,) = [notice for notice in data.notices if notice.kind == "skipped"]
    assert (skipped.count, skipped.examples) == (2, ("row 3", "row 17"))


def test_a_text_that_a_tokenizer_drops_is_empty(folder, byte_pairs, tmp_path):
    rust = Tokenizer.from_file(byte_pairs)
    rust.normalizer = normalizers.Replace("\u200b", "")
    rust.save(str(tmp_path / "tokenizer.json"))
    texts, labels = sentences(50)
    path = folder(all={"sentence": ["\u200b", *texts[1:]], "label": labels})
    with pytest.raises(ValueError, match=r"1 of 50 texts .* row 0; .*data.skip_bad=true"):
        load(path=path, tokenizer=str(tmp_path))
    assert int(load(path=path, tokenizer=str(tmp_path), skip_bad=True).train.lengths.min()) > 0


def test_streamed_texts_are_those_in_memory(labelled, cache_dir):
    plain, streamed = load(path=labelled), load(path=labelled, max_in_memory_bytes=0)
    assert (plain.train.streamed, streamed.train.streamed) == (False, True)
    assert streamed.fingerprint == plain.fingerprint
    assert decoded(streamed.test) == decoded(plain.test)
    assert len([p for p in cache_dir.iterdir() if p.is_dir()]) == 3
    assert load(path=labelled, max_in_memory_bytes=0).fingerprint == plain.fingerprint


def column(**more):
    return {"sentence": sentences(50)[0], "label": sentences(50)[1], **more}


BAD = {
    "text column": ({"text_column": "sentense"}, says("text_column", "sentense", "did you mean sentence")),
    "label column": ({"label_column": "lable"}, says("label_column", "did you mean label")),
    "weight column": ({"weight_column": "v"}, says("weight_column", "'v'")),
    "text of numbers": ({"text_column": "n"}, says("text_column", "texts", "int")),
    "label of floats": ({"label_column": "half"}, says("label_column", "0.5")),
    "words for numbers": ({"label_column": "word", "asks": "values"}, says("label_column", "'a'", "numbers")),
    "labels above 1": ({"label_column": "n", "asks": "labels"}, says("label_column", "0 or 1", "2")),
    "one class": ({"label_column": "one"}, says("num_classes", "1", ">= 2")),
    "classes declared": ({"num_classes": 3}, says("num_classes", "3", "2")),
    "weight below 0": ({"weight_column": "below"}, says("weight_column", ">= 0")),
    "weights of classes": ({"class_weights": [1]}, says("class_weights", "2 numbers")),
    "word of weights": ({"class_weights": "even"}, says("class_weights", "balanced")),
    "weights of numbers": ({"class_weights": "balanced", "asks": "values"}, says("class_weights", "null")),
    "two classes": ({"label_column": ["label", "n"]}, says("label_column", "probabilities")),
    "pictures": ({"asks": "pictures"}, says("asks", "pictures")),
    "split": ({"test_split": "tset"}, says("test_split", "tset", "train")),
    "all cut": ({"test_fraction": 0.001}, says("test_fraction", "0.001")),
    "no test": ({"test_fraction": None}, says("test_fraction", "null")),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(folder, options, message):
    columns = column(
        n=list(range(50)), half=[0.5] * 50, word=["a", "b"] * 25, one=[4] * 50, below=[-1.0] * 50
    )
    with pytest.raises(ValueError, match=message):
        load(path=folder(all=columns), **options)


def test_unlabelled_and_unknown_labels_are_refused(folder):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["a", "b"])})
    (texts, labels), (more, _) = sentences(40), sentences(10, 100)
    path = folder(
        features, train={"sentence": texts, "label": labels}, test={"sentence": more, "label": [-1] * 10}
    )
    with pytest.raises(ValueError, match=r"labels 0 to 1 in the test split, got -1"):
        load(path=path)
    path = folder(train={"sentence": texts, "label": labels}, test={"sentence": more, "label": [7] * 10})
    with pytest.raises(ValueError, match=says("label_column", "7", "row 0")):
        load(path=path)


def test_a_set_that_is_not_there_is_refused(tmp_path):
    for options, key in (({"path": str(tmp_path)}, "path"), ({}, "id"), ({"path": __file__}, "path")):
        with pytest.raises(ValueError, match=says(key)):
            load(**options)


def test_a_number_that_never_changes_is_refused_by_its_column(folder):
    texts, _ = sentences(30)
    path = folder(train={"sentence": texts, "a": [float(i) for i in range(30)], "b": [2.0] * 30})
    with pytest.raises(ValueError, match=says("label_column", "'b'", "same")):
        load(path=path, label_column=["a", "b"], asks="values")


def test_several_label_columns_of_classes_are_their_probabilities(folder):
    texts, labels = sentences(40)
    soft = {"even": [0.75 - 0.5 * label for label in labels], "odd": [0.25 + 0.5 * label for label in labels]}
    path = folder(
        train={"sentence": texts, **soft}, test={"sentence": texts[:9], **{k: v[:9] for k, v in soft.items()}}
    )
    options = {
        "path": path,
        "label_column": ["even", "odd"],
        "validation_fraction": 0.2,
        "allow_overlap": True,
    }
    data = load(**options)
    assert (data.class_names, data.num_classes) == (("even", "odd"), 2)
    assert decoded(data.test) == texts[:9]
    assert data.test.targets.tolist() == [[0.75 - 0.5 * label, 0.25 + 0.5 * label] for label in labels[:9]]
    with pytest.raises(ValueError, match=says("class_weights", "null")):
        load(**options, class_weights="balanced")
    soft["odd"][5] = 0.5
    with pytest.raises(ValueError, match=says("label_column", "probabilities")):
        load(**options | {"path": folder(train={"sentence": texts, **soft}), "test_fraction": 0.2})

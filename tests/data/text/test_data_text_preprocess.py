import json

import pytest
import torch
from text_sets import CUTS, sentences

from compresskd.data.text.blocks import text_blocks
from compresskd.data.text.preprocess import inputs_of
from compresskd.data.text.texts import text
from compresskd.data.text.tokens import tokens

TEXT = {
    "name": "text", "text_column": "sentence", "label_column": "label", "weight_column": None, "max_length": 6,
    "asks": None, "class_weights": None, "group_by_length": False, "skip_bad": False, **CUTS,
}  # fmt: skip


def check(data, texts, pairs=None):
    preprocessing = json.loads(json.dumps(data.preprocessing))  # as it travels with a model
    (batch,) = data.test.batches(len(data.test))
    found = inputs_of(preprocessing, texts, pairs)
    assert list(found) == list(batch.inputs)
    for name, tensor in found.items():
        assert torch.equal(tensor, batch.inputs[name]), name


@pytest.mark.parametrize("named", ["characters", "bytes", "folder"])
def test_texts_become_what_the_split_gives(labelled, tokenizer, named):
    named = tokenizer if named == "folder" else named
    check(text(**TEXT, path=labelled, pair_column=None, tokenizer=named), sentences(20, 200)[0])


def test_pairs_become_what_the_split_gives(folder, tokenizer):
    (train, labels), (texts, others) = sentences(40), sentences(10, 100)
    path = folder(
        train={"sentence": train, "second": train, "label": labels},
        test={"sentence": texts, "second": texts[::-1], "label": others},
    )
    data = text(**{**TEXT, "max_length": 8}, path=path, pair_column="second", tokenizer=tokenizer)
    check(data, texts, texts[::-1])
    with pytest.raises(ValueError, match="two texts"):
        inputs_of(data.preprocessing, texts)


def test_words_become_what_the_split_gives(tagged, tokenizer):
    data = tokens(
        name="tokens", path=tagged, tokens_column="tokens", tags_column="upos", tokenizer=tokenizer, max_length=7,
        group_by_length=False, skip_bad=False, **CUTS,
    )  # fmt: skip
    check(data, [sentence.split() for sentence in sentences(10, 100)[0]])


def test_a_block_becomes_what_the_split_gives(tmp_path):
    whole = "".join(f"{i} and " for i in range(100))
    (tmp_path / "it.txt").write_text(whole)
    data = text_blocks(
        name="blocks", path=str(tmp_path / "it.txt"), text_column="text", separator="", tokenizer="characters",
        block_size=10, **CUTS,
    )  # fmt: skip
    start = 10 * (len(data.train) + len(data.validation))
    check(data, [whole[i : i + 10] for i in range(start, start + 10 * len(data.test), 10)])
    with pytest.raises(ValueError, match="without padding"):
        inputs_of(data.preprocessing, ["and", "0"])


def test_what_is_no_text_is_refused(labelled):
    data = text(**TEXT, path=labelled, pair_column=None, tokenizer="bytes")
    for texts in ([], ["a", ""]):
        with pytest.raises(ValueError, match="empty"):
            inputs_of(data.preprocessing, texts)
    with pytest.raises(ValueError, match="one text"):
        inputs_of(data.preprocessing, ["a"], ["b"])
    with pytest.raises(ValueError, match="table"):
        inputs_of({"kind": "table"}, ["a"])

import pytest
import torch
from refusals import says
from text_sets import CUTS, kinds, sentences

from compresskd.data.text.tokens import tokens
from compresskd.tasks import IGNORED, TokenClassification

OPTIONS = {
    "name": "tokens", "tokens_column": "tokens", "tags_column": "upos", "max_length": None, "group_by_length": True,
    "skip_bad": False, **CUTS,
}  # fmt: skip


@pytest.fixture
def load(tokenizer):
    def load(**options):
        return tokens(**{**OPTIONS, "tokenizer": tokenizer, **options})

    return load


def test_a_tag_sits_on_the_first_piece_of_its_word(load, tagged, tokenizer):
    from tokenizers import Tokenizer

    data = load(path=tagged)
    assert (data.class_names, data.num_classes) == (("A", "B", "C"), 3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [24, 6, 10]
    rust = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    (batch,) = data.test.batches(10)
    later = 0
    for row, sentence in enumerate(sentences(10, 100)[0]):
        expected = [IGNORED]
        for word in sentence.split():
            pieces = rust.encode(word, add_special_tokens=False).ids
            expected += [len(word) % 3] + [IGNORED] * (len(pieces) - 1)
            later += len(pieces) - 1
        found = batch.targets[row].tolist()
        assert found == (expected[:11] + [IGNORED] * 20)[: len(found)]
    assert later
    assert batch.inputs["input_ids"].shape == batch.targets.shape


def test_tags_that_are_cut_off_are_told(load, tagged):
    data = load(path=tagged, max_length=4)
    assert data.train.targets.shape[1] == 4
    assert {"truncated", "unasked"} <= set(kinds(data))


def test_strings_are_tags(load, folder):
    words = [text.split() for text in sentences(30)[0]]
    path = folder(all={"tokens": words, "upos": [["N" if len(w) > 2 else "D" for w in row] for row in words]})
    assert load(path=path).class_names == ("D", "N")


def test_sentences_without_words_are_named_or_left_out(load, folder):
    words = [text.split() for text in sentences(30)[0]]
    words[4], words[5] = [], ["\x00"]  # which the tokenizer drops
    path = folder(all={"tokens": words, "upos": [[len(w) % 3 for w in row] for row in words]})
    with pytest.raises(ValueError, match=r"2 of 30 sentences .* row 4; row 5; .*data.skip_bad=true"):
        load(path=path)
    assert kinds(load(path=path, skip_bad=True))[0] == "skipped"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"tags_column": "tags"}, says("tags_column", "'tags'")),
        ({"tokens": ["a b"] * 30}, {}, says("tokens_column", "list of words")),
        ({"upos": [[1]] * 30}, {}, says("tags_column", "tag for each")),
        ({}, {"tokenizer": "characters"}, says("tokenizer", "characters", "tokenizer.json")),
        ({}, {"tokenizer": None}, says("tokenizer", "null")),
    ],
    ids=["no tags", "no words", "too few tags", "characters", "no tokenizer"],
)
def test_what_does_not_fit_is_refused(load, folder, columns, options, message):
    words = [["a", "b"]] * 30
    path = folder(all={"tokens": words, "upos": [[0, 1]] * 30, **columns})
    with pytest.raises(ValueError, match=message):
        load(path=path, **options)


def test_tags_may_be_weighted(tagged, tokenizer):
    data = tokens(path=tagged, tokenizer=tokenizer, class_weights="balanced", **OPTIONS)
    (batch,) = data.train.batches(len(data.train))
    asked = batch.targets[batch.targets != IGNORED]
    counts = torch.bincount(asked)
    wanted = len(asked) / (3 * counts[asked])
    torch.testing.assert_close(batch.weights[batch.targets != IGNORED], wanted)
    task, logits = TokenClassification(), torch.randn(*batch.targets.shape, 3)
    rows, targets = task.rows(logits, batch)
    loss = task.label_loss(rows.logits, targets, weights=rows.weights)
    means = [task.label_losses(rows.logits, targets)[targets == tag].mean() for tag in range(3)]
    torch.testing.assert_close(loss, torch.stack(means).mean())
    assert data.fingerprint != tokens(path=tagged, tokenizer=tokenizer, **OPTIONS).fingerprint
    with pytest.raises(ValueError, match="class_weights"):
        tokens(path=tagged, tokenizer=tokenizer, class_weights=[1.0, 2.0], **OPTIONS)

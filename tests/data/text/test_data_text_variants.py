"""Variants of training texts: which they are, and who sees them."""

import json

import numpy as np
import pytest
import torch
from refusals import fault, refused, says
from text_sets import SENTENCES, WORDS, samples, sentences

from compresskd.data.text.texts import text
from compresskd.data.text.tokenizer import tokenizer_of
from compresskd.tasks import UNLABELLED


@pytest.mark.parametrize("named", ["words", "bytes", "characters"])
def test_pieces_are_runs_of_words_of_training_texts(named, labelled, tokenizer):
    options = {**SENTENCES, "path": labelled, "tokenizer": tokenizer if named == "words" else named}
    data = text(**options, unlabelled_spans=4)
    whole = list(samples(data.train))
    pieces = list(samples(data.unlabelled))
    frame = 1 if named == "words" else 0  # special tokens on each side
    assert len(set(pieces)) == len(pieces) > len(whole)
    assert not set(pieces) & set(whole)
    begins = tokenizer_of(options["tokenizer"], lambda: sentences(300)[0]).begin_words
    for piece in pieces:
        inner = piece[frame : len(piece) - frame]
        assert (
            piece[:frame] + piece[len(piece) - frame :]
            == whole[0][:frame] + whole[0][len(whole[0]) - frame :]
        )
        cuts = [
            begins(np.array(t[frame:]))[at - frame]
            for t in whole
            for at in range(frame, len(t) - frame)
            if t[at : at + len(inner)] == inner
        ]
        assert any(cuts) if named != "characters" else cuts
    assert len({len(piece) for piece in pieces}) > 2
    (batch,) = data.unlabelled.batches(len(data.unlabelled))
    assert (batch.targets == UNLABELLED).all()
    again = text(**options, unlabelled_spans=4)
    assert again.unlabelled.fingerprint == data.unlabelled.fingerprint
    assert data.fingerprint == text(**options).fingerprint
    assert (
        text(**{**options, "split_seed": 1}, unlabelled_spans=4).unlabelled.fingerprint
        != data.unlabelled.fingerprint
    )


@pytest.mark.parametrize("named", ["words", "bytes"])
def test_replacements_are_texts_with_up_to_half_of_their_words_from_others(named, labelled, tokenizer):
    options = {**SENTENCES, "path": labelled, "tokenizer": tokenizer if named == "words" else named}
    data = text(**options, unlabelled_replacements=3)
    made = tokenizer_of(options["tokenizer"], lambda: sentences(300)[0])
    frame, trailing = made.frame()

    def words_of(sample):
        inner = np.array(sample[frame : len(sample) - trailing])
        return [tuple(word.tolist()) for word in np.split(inner, np.flatnonzero(made.begin_words(inner))[1:])]

    texts = [words_of(sample) for sample in samples(data.train)]
    known = {word for each in texts for word in each}
    shares = []
    for sample in samples(data.unlabelled):
        words = words_of(sample)
        assert set(words) <= known
        alike = max(
            sum(a == b for a, b in zip(words, each, strict=True)) for each in texts if len(each) == len(words)
        )
        shares.append(1 - alike / len(words))
    assert len(shares) > len(texts)  # of three copies, without those that are as they were
    assert 0.15 < np.mean(shares) < 0.5
    longest = int(data.train.lengths.max())
    assert int(data.unlabelled.lengths.max()) <= longest
    again = text(**options, unlabelled_replacements=3)
    assert again.unlabelled.fingerprint == data.unlabelled.fingerprint
    both = text(**options, unlabelled_replacements=3, unlabelled_spans=2)
    assert set(samples(data.unlabelled)) < set(samples(both.unlabelled))


@pytest.mark.parametrize("named", ["tokenizer", "byte_pairs"])
def test_the_first_piece_of_a_word_is_known_by_its_mark(named, request):
    pieces = tokenizer_of(request.getfixturevalue(named), list)
    several = []
    for line in [" ".join(WORDS), "unbelievably good films", "the dullest film ever seen"]:
        encoded = pieces.rust.encode(line, add_special_tokens=False)
        words = encoded.word_ids
        first = [at == 0 or words[at] != words[at - 1] for at in range(len(words))]
        assert pieces.begin_words(np.array(encoded.ids)).tolist() == first
        several.append(not all(first))
    assert any(several)


def test_pieces_join_the_texts_without_labels(labelled, folder):
    more = folder(train={"sentence": sentences(33, 300)[0]})
    options = {**SENTENCES, "path": labelled, "tokenizer": "bytes"}
    alone, of_file = text(**options, unlabelled_spans=2), text(**options, unlabelled_path=more)
    both = text(**options, unlabelled_spans=2, unlabelled_path=more)
    assert list(samples(both.unlabelled)) == [*samples(of_file.unlabelled), *samples(alone.unlabelled)]
    assert torch.equal(
        both.unlabelled.lengths, torch.cat([of_file.unlabelled.lengths, alone.unlabelled.lengths])
    )


def test_where_there_are_none_they_are_refused(labelled, folder, tokenizer):
    one_word = {"sentence": ["alpha", "beta"] * 10, "label": ["a", "b"] * 10}
    with pytest.raises(ValueError, match="two words"):
        text(
            **SENTENCES | {"path": folder(train=one_word), "tokenizer": "bytes", "test_fraction": 0.2},
            allow_overlap=True,
            unlabelled_spans=2,
        )
    with pytest.raises(ValueError, match=says("unlabelled_spans", "null")):
        text(**SENTENCES | {"path": labelled, "tokenizer": "bytes", "asks": "vectors"}, unlabelled_spans=2)
    with pytest.raises(ValueError, match=says("unlabelled_replacements", "null for pairs")):
        text(
            **SENTENCES | {"path": labelled, "tokenizer": tokenizer, "pair_column": "sentence"},
            unlabelled_replacements=2,
        )


@pytest.mark.slow
def test_a_distillation_sees_them_and_training_on_labels_is_refused(run_cli, work, labelled):
    typed = [
        "task=text_classification",
        f"data.path={labelled}",
        "data.text_column=sentence",
        "data.tokenizer=characters",
    ]
    typed += [
        line.format(role)
        for role in ("teacher", "student")
        for line in ("{}=custom", "{}._target_=text_models.TextClassifier", "+{}.vocabulary=300")
    ]
    typed += ["data.unlabelled_spans=2", "train.batch_size=8", "epochs=1"]
    ended = run_cli(*typed, "strategy=distill", "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    record = json.loads((work / "run" / "record.json").read_text())
    assert record["data"]["unlabelled"]["num"] > 60
    (of_teacher,) = (work / "outputs" / "teachers").rglob("record.json")
    assert "unlabelled" not in json.loads(of_teacher.read_text())["data"]
    refused(run_cli(*typed, "strategy=train"), fault("data.unlabelled_spans", "null"))

"""The smaller tokens of a token, and texts that are cut into them."""

import json

import numpy as np
import pytest
from text_sets import SENTENCES, samples
from tokenizers import Tokenizer
from trained_tokenizers import KINDS, SPECIAL, trained

from compresskd.data.text.subwords import smaller_tokens
from compresskd.data.text.texts import text
from compresskd.data.text.tokenizer import Bytes, Characters, tokenizer_of


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_tokens_spell_the_same(kind):
    made = trained(kind)
    names = {number: token for token, number in made.rust.get_vocab(with_added_tokens=True).items()}
    prefix = "##" if kind == "WordPiece" else ""
    found = smaller_tokens(made)
    assert len(found) > 0.8 * len(names)
    for number, parts in found.items():
        first, *others = [names[part] for part in parts.tolist()]
        assert others
        assert all(other.startswith(prefix) for other in others)
        assert first + "".join(other.removeprefix(prefix) for other in others) == names[number]
    special = {number for number, name in names.items() if name in SPECIAL or name.startswith("<0x")}
    assert not special & found.keys()
    assert not special & {part for parts in found.values() for part in parts.tolist()}
    few = set([*found][::7])
    assert smaller_tokens(made, of=few).keys() == few
    alone = {number for number, name in names.items() if len(name.removeprefix(prefix or "\u2581")) < 2}
    assert not (alone & found.keys()) or kind in ("Unigram", "sentencepiece")


def test_they_are_what_wordpiece_makes_of_the_word_without_its_token():
    made = trained("WordPiece")
    names = {number: token for token, number in made.rust.get_vocab().items()}
    found = smaller_tokens(made)
    words = [number for number in sorted(found) if names[number].isalpha()]
    assert len(words) > 100
    for number in words[:: len(words) // 40]:
        value = json.loads(made.rust.to_str())
        del value["model"]["vocab"][names[number]]
        without = Tokenizer.from_str(json.dumps(value)).encode(names[number], add_special_tokens=False)
        assert without.tokens == [names[part] for part in found[number].tolist()]


@pytest.mark.parametrize("plain", [Bytes(), Characters("abc")])
def test_units_have_none(plain):
    assert smaller_tokens(plain) == {}


@pytest.mark.parametrize("named", ["tokenizer", "byte_pairs"])
def test_variants_say_the_same_in_smaller_tokens(named, labelled, request):
    options = {**SENTENCES, "path": labelled, "tokenizer": request.getfixturevalue(named)}
    pieces = tokenizer_of(options["tokenizer"], list)
    data = text(**options, unlabelled_subwords=3)

    def spelled(sample):
        tokens = [pieces.rust.id_to_token(number) for number in sample]
        return "".join(token.removeprefix("##") for token in tokens)

    whole, cut = list(samples(data.train)), list(samples(data.unlabelled))
    assert len(set(cut)) == len(cut) > len(whole) / 2
    assert not set(cut) & set(whole)
    lengths = {spelled(sample): len(sample) for sample in whole}
    longer = [len(sample) / lengths[spelled(sample)] for sample in cut]  # KeyError for another text
    assert min(longer) > 1
    assert np.mean(longer) < 1.8
    again = text(**options, unlabelled_subwords=3)
    assert again.unlabelled.fingerprint == data.unlabelled.fingerprint
    both = text(**options, unlabelled_subwords=3, unlabelled_spans=2)
    assert set(cut) < set(samples(both.unlabelled))


def test_rare_tokens_fall_to_smaller_ones_that_are_left(labelled, tokenizer):
    options = {**SENTENCES, "path": labelled, "tokenizer": tokenizer, "prune_vocabulary": 20}
    data = text(**options, unlabelled_subwords=2)
    assert len(data.unlabelled) > 0
    (batch,) = data.unlabelled.batches(len(data.unlabelled))
    assert int(batch.inputs["input_ids"].max()) < len(data.vocabulary.kept)


def test_a_tokenizer_without_smaller_tokens_is_refused(labelled):
    with pytest.raises(ValueError, match="subwords a tokenizer whose words can be cut"):
        text(**SENTENCES | {"path": labelled, "tokenizer": "bytes"}, unlabelled_subwords=2)

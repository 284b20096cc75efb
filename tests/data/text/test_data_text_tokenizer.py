import numpy as np
import pytest
from refusals import says
from tokenizers import Tokenizer

from compresskd.data.text.tokenizer import Bytes, Characters, described, tokenizer_of
from compresskd.options import OptionError

TEXTS = ["never saw it", "Größe: 日本 😀!", " a\n\nb "]


def test_characters_are_those_of_the_texts_by_code_point():
    made = tokenizer_of("characters", lambda: ["ba", "cß"])
    assert (made, made.vocabulary_size) == (Characters("abcß"), 4)
    ids, sizes = made.pieces("ßa")
    assert (ids.tolist(), sizes.tolist()) == ([3, 0], [2, 1])
    with pytest.raises(ValueError, match=r"4 characters.*'d'"):
        made.pieces("ad")


def test_bytes_are_those_of_utf_8():
    ids, sizes = Bytes().pieces("ß😀")
    assert bytes(ids.astype(np.uint8)).decode() == "ß😀"
    assert (Bytes().vocabulary_size, sizes.tolist()) == (256, [1] * 6)


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_pieces_are_those_of_the_text(byte_pairs, text):
    ids, sizes = tokenizer_of(byte_pairs, lambda: ()).pieces(text)
    assert ids.tolist() == Tokenizer.from_file(byte_pairs).encode(text).ids
    assert sizes.sum() == len(text.encode())
    assert (sizes >= 0).all()


def test_a_folder_says_how_texts_are_padded_and_cut(tokenizer, byte_pairs):
    made = tokenizer_of(tokenizer, lambda: ())
    assert (made.padding_id, made.max_length, made.has_types) == (3, 12, True)
    plain = tokenizer_of(byte_pairs, lambda: ())
    assert (plain.padding_id, plain.max_length, plain.has_types) == (0, 512, False)
    (one,) = made.encode(["the film was good"], None, 4)
    assert (one.ids[0], one.ids[-1], len(one.ids), one.truncated) == (1, 2, 4, True)
    (pair,) = made.encode(["the film"], ["was good"], None)
    assert set(pair.types.tolist()) == {0, 1}
    assert not pair.truncated


@pytest.mark.parametrize("named", ["characters", "bytes", "folder", "file"])
def test_what_describes_a_tokenizer_makes_it_again(named, tokenizer, byte_pairs):
    named = {"folder": tokenizer, "file": byte_pairs}.get(named, named)
    made = tokenizer_of(named, lambda: TEXTS)
    again = described(made.describe())
    assert again.vocabulary_size == made.vocabulary_size
    for text in TEXTS:
        assert again.pieces(text)[0].tolist() == made.pieces(text)[0].tolist()
        assert again.encode([text], None, 5)[0].ids.tolist() == made.encode([text], None, 5)[0].ids.tolist()


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    for named, words in (
        (None, ["null", "characters"]),
        (str(tmp_path), ["tokenizer.json"]),
        ("no/such", ["hub"]),
    ):
        with pytest.raises(OptionError, match=says("tokenizer", *words)):
            tokenizer_of(named, lambda: ())
    with pytest.raises(OptionError, match=says("tokenizer", "characters", "words")):
        Characters("ab").encode_words([["a"]], None)
    with pytest.raises(OptionError, match=says("pair_column", "null")):
        Characters("ab").encode(["a"], ["b"], None)
    with pytest.raises(ValueError, match="tokenizer"):
        described({"pieces": 3})

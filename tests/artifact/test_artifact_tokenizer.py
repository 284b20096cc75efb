"""A tokenizer comes out of a model file as it went in, in fewer bytes, and a hostile one is refused."""

import bz2
import functools
import json
import time
import zlib
from pydoc_data.topics import topics

import msgpack
import pytest
from stored_models import content, mlp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from compresskd import artifact
from compresskd.artifact import ArtifactError, header
from compresskd.artifact.compact import FORMAT
from compresskd.artifact.tokenizer import join_tokenizer, split_tokenizer
from compresskd.artifact.varint import varint
from compresskd.artifact.words import pack_words, unpack_words

TEXTS = [
    *topics["class"].splitlines(),
    "a straße, an ἄνθρωπος, 東京 and a 😀 are words as good as others; rewording is no better wording",
]


@functools.cache
def trained(kind):
    """The tokenizer.json of a tokenizer of one kind."""
    model, trainer = {
        "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "BPE": (models.BPE(), trainers.BpeTrainer),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer),
        "WordLevel": (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer),
    }[kind]
    rust = Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "BPE" else pre_tokenizers.Whitespace()
    more = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    rust.train_from_iterator(
        TEXTS, trainer(vocab_size=500, special_tokens=["[UNK]", "[PAD]"], show_progress=False, **more)
    )
    return rust.to_str()


def changed(text, change):
    value = json.loads(text)
    change(value["model"])
    return json.dumps(value)


def stored(text):
    return content(mlp(), input_shape=[1, 8, 8], preprocessing={"tokenizer": {"json": text, "padding_id": 1}})


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram", "WordLevel"])
def test_a_tokenizer_comes_back_in_fewer_bytes(kind):
    text = trained(kind)
    rest, words = split_tokenizer(text)
    assert join_tokenizer(rest, words) == text
    assert len(zlib.compress(rest.encode() + words)) < 0.9 * len(zlib.compress(text.encode()))
    again, ours = Tokenizer.from_str(join_tokenizer(rest, words)), Tokenizer.from_str(text)
    assert [again.encode(each).ids for each in TEXTS] == [ours.encode(each).ids for each in TEXTS]


def test_merges_follow_from_words_in_the_order_in_which_they_were_learned():
    text = trained("BPE")
    assert json.loads(split_tokenizer(text)[0])["model"]["merges"] is None
    other = changed(text, lambda model: model["merges"].reverse())
    rest, words = split_tokenizer(other)
    assert json.loads(rest)["model"]["merges"] == json.loads(other)["model"]["merges"]
    assert json.loads(join_tokenizer(rest, words)) == json.loads(other)


@pytest.mark.parametrize(
    ("kind", "change"),
    {
        "numbers with a gap": ("WordPiece", lambda m: m["vocab"].update(more=1000)),
        "one number twice": ("WordPiece", lambda m: m["vocab"].update(more=3)),
        "a control character": ("WordPiece", lambda m: m["vocab"].update({"a\tb": len(m["vocab"])})),
        "no vocabulary": ("WordPiece", lambda m: m.pop("vocab")),
    }.values(),
    ids=["gap", "twice", "control", "none"],
)
def test_what_cannot_be_split_stays_as_it_is(kind, change, tmp_path):
    text = changed(trained(kind), change)
    assert split_tokenizer(text) is None
    artifact.write_compact(stored(text), tmp_path / "model.ckd")
    assert (tmp_path / "model.ckd").read_bytes()[3] & 127 == FORMAT - 2
    assert artifact.read(tmp_path / "model.ckd").about["preprocessing"]["tokenizer"]["json"] == text


def test_a_file_holds_it_and_says_how_many_bytes_are_its_own(tmp_path):
    text = trained("WordPiece")
    whole = stored(text)
    split = artifact.write_compact(whole, tmp_path / "model.ckd")
    without = artifact.write_compact(
        content(mlp(), input_shape=[1, 8, 8], preprocessing={}), tmp_path / "bare"
    )
    assert split.total == (tmp_path / "model.ckd").stat().st_size
    assert (tmp_path / "model.ckd").read_bytes()[3] & 127 == FORMAT
    assert artifact.compact_sizes(whole)["tokenizer_bytes"] == split.tokenizer
    assert abs(split.total - split.tokenizer - without.total) < 12
    assert dict(artifact.read(tmp_path / "model.ckd").about) == dict(whole.about)


@pytest.mark.parametrize("words", [[], ["a"], [""], ["b", "a", "ab", "abc"], ["x" * 300, "x" * 300 + "é"]])
def test_words_come_back(words):
    assert unpack_words(pack_words(words)) == words


def test_words_in_alphabetical_order_take_less():
    words = list(json.loads(trained("WordPiece"))["model"]["vocab"])
    assert len(pack_words(sorted(words))) < 0.8 * len(pack_words(words))


@pytest.mark.parametrize(
    "words",
    {
        "way": b"\x07abc",
        "garbage": b"\x00garbage",
        "unfinished": pack_words(["a", "b"])[:-3],
        "left over": pack_words(["a", "b"]) + b"x",
        "no beginning": b"\0" + bz2.compress(b"abc"),
        "too much shared": b"\0" + bz2.compress(b"\0a\5b"),
        "no utf-8": b"\0" + bz2.compress(b"\0\xff"),
        "bomb": b"\0" + bz2.compress(bytes(10**8)),
        "bomb of shares": b"\0" + bz2.compress(b"\0" + b"x" * 31 + b"\x1f" * 10**6),
        "another number": pack_words(["a", "b", "c"]),
        "twice": pack_words(["a", "a"]),
    }.values(),
    ids=lambda value: str(len(value)),
)
def test_hostile_words_are_refused_at_once(words, tmp_path):
    path = tmp_path / "model.ckd"
    artifact.write_compact(stored(trained("WordPiece")), path)
    data = path.read_bytes()
    size, start = artifact.compact.read_varint(data, 4, "header")
    fields = msgpack.unpackb(header.decompress(data[start : start + size]))
    fields[8] = words
    head = header.compress(msgpack.packb(fields))
    body = data[:4] + varint(len(head)) + head + data[start + size : -8]
    path.write_bytes(body + artifact.compact._checksum(memoryview(body)))
    began = time.process_time()
    with pytest.raises(ArtifactError, match=r"words|tokenizer|utf-8"):
        artifact.read(path)
    assert time.process_time() - began < 5


def test_words_of_no_tokenizer_are_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        artifact.tokenizer.put_words({}, pack_words(["a"]))


def test_words_whose_merges_would_take_for_ever_are_not_looked_at():
    text = json.dumps({"model": {"type": "BPE", "vocab": 1, "merges": None}})
    with pytest.raises(ValueError, match="too long"):
        join_tokenizer(text, pack_words(["x" * 5000]))

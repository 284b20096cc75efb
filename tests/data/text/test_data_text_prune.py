"""A tokenizer that is left the tokens of a text cuts it as before, and other texts into no unknown pieces."""

import json
import string

import numpy as np
import pytest
from refusals import says
from text_sets import CUTS, sentences
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from trained_tokenizers import KINDS, LINES, SPECIAL, trained

from compresskd.artifact.tokenizer import split_tokenizer
from compresskd.data.text.blocks import python_docs, text_blocks
from compresskd.data.text.prune import pruned
from compresskd.data.text.texts import text
from compresskd.data.text.tokenizer import Bytes, Characters, Pieces, described
from compresskd.data.text.tokens import tokens
from compresskd.data.text.translated import text_to_text
from compresskd.options import OptionError

TRAIN, OTHER = LINES[::2], LINES[1::2]


def encoded(tokenizer, lines):
    return [each.ids for each in tokenizer.encode(lines, None, None)]


def counted(kind, lines=TRAIN):
    whole = trained(kind)
    return np.bincount(np.concatenate(encoded(whole, lines)), minlength=whole.vocabulary_size)


@pytest.mark.parametrize("wanted", [True, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_tokens_that_stay_are_cut_as_before(kind, wanted):
    whole, counts = trained(kind), counted(kind)
    made, kept = pruned(whole, counts, wanted)
    assert len(kept) == made.vocabulary_size < whole.vocabulary_size
    before, after = encoded(whole, LINES), encoded(made, LINES)
    stays = [set(ids.tolist()) <= set(kept.tolist()) for ids in before]
    assert sum(stays) > 20
    for old, new in ((old, new) for old, new, stay in zip(before, after, stays, strict=True) if stay):
        assert np.array_equal(kept[new], old)
    if wanted is True:
        assert set(np.flatnonzero(counts).tolist()) <= set(kept.tolist())
        assert all(stays[::2])
    else:
        often = np.sort(counts)[-wanted]
        assert {number for number in range(len(counts)) if counts[number] > often} <= set(kept.tolist())
        assert len(kept) < (counts > 0).sum()


@pytest.mark.parametrize("wanted", [True, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_known_characters_becomes_unknown(kind, wanted):
    whole = trained(kind)
    made, _ = pruned(whole, counted(kind), wanted)
    known = set("".join(TRAIN)) | set(string.printable)
    lines = [line for line in OTHER if set(line) <= known] + ["Zyxw qvutsrp 0918273645 {~} Jklmn"]
    assert len(lines) > 100
    for old, new in zip(encoded(whole, lines), encoded(made, lines), strict=True):
        assert (new == 1).sum() <= (old == 1).sum()  # [UNK]
    if kind == "bytes":
        assert made.rust.decode(encoded(made, ["naïve 東京 ☃"])[0]) == "naïve 東京 ☃"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_stay_with_their_numbers_everywhere(kind):
    made, kept = pruned(trained(kind), counted(kind), 10)
    numbers = [made.rust.token_to_id(token) for token in SPECIAL]
    assert numbers[:4] == [0, 1, 2, 3]
    assert numbers[4] == len(kept) - 1
    ids = encoded(made, ["<later>"])[0].tolist()
    assert (ids[0], ids[-1]) == (2, 3)
    assert numbers[4] in ids
    again = described(made.describe())
    assert np.array_equal(encoded(again, OTHER[:1])[0], encoded(made, OTHER[:1])[0])
    assert pruned(trained(kind), counted(kind), 10)[1].tolist() == kept.tolist()


def test_pieces_of_words_are_in_alphabetical_order_and_take_less():
    made, kept = pruned(trained("WordPiece"), counted("WordPiece"), True)
    words = list(json.loads(made.describe()["json"])["model"]["vocab"])
    assert words[4:] == sorted(words[4:])
    assert sorted(kept[4:-1].tolist()) != kept[4:-1].tolist()
    sizes = [len(split_tokenizer(each.describe()["json"])[1]) for each in (made, trained("WordPiece"))]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_merge_stays_where_a_token_is_made_by_it():
    made, _ = pruned(trained("bytes"), counted("bytes"), 5)
    model = json.loads(made.describe()["json"])["model"]
    assert {"".join(pair) for pair in model["merges"]} <= model["vocab"].keys()
    ranks = {
        tuple(pair): rank
        for rank, pair in enumerate(json.loads(trained("bytes").rust.to_str())["model"]["merges"])
    }
    order = [ranks[tuple(pair)] for pair in model["merges"]]
    assert order == sorted(order)


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_tokens_are_used_none_changes_its_number(kind):
    whole = trained(kind)
    made, kept = pruned(whole, np.ones(whole.vocabulary_size, np.int64), True)
    assert kept.tolist() == list(range(whole.vocabulary_size))
    assert made.rust.get_vocab() == whole.rust.get_vocab()


def test_tokenizers_whose_words_fall_to_nothing_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    prefixes = Tokenizer(models.BPE({"a": 0, "##b": 1}, [], continuing_subword_prefix="##"))
    for tokenizer in (Characters("ab"), Bytes(), Pieces(words), Pieces(prefixes)):
        counts = np.ones(tokenizer.vocabulary_size, np.int64)
        with pytest.raises(OptionError, match=says("prune_vocabulary", "false")):
            pruned(tokenizer, counts, True)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A folder with a tokenizer.json that knows the numbers at the ends of all sentences."""
    rust = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=800, special_tokens=["[UNK]", "[PAD]"], show_progress=False
    )
    rust.train_from_iterator(sentences(700)[0], trainer)
    root = tmp_path_factory.mktemp("larger")
    rust.save(str(root / "tokenizer.json"))
    return str(root)


SET = {"max_length": None, "group_by_length": True, "skip_bad": False, **CUTS}
TEXT = {
    "name": "text", "text_column": "sentence", "pair_column": None, "label_column": "label", "weight_column": None,
    "asks": None, "class_weights": None, **SET,
}  # fmt: skip


def pieces_of(split, data):
    """The tokens of each sample, by name."""
    rust = described(data.preprocessing["tokenizer"]).rust
    (batch,) = split.batches(len(split))
    ids = batch.inputs["input_ids"] if isinstance(batch.inputs, dict) else batch.inputs
    return [[rust.id_to_token(int(number)) for number in row] for row in ids]


def test_what_the_training_text_alone_uses_stays(labelled, larger):
    whole = text(**TEXT, path=labelled, tokenizer=larger)
    data = text(**TEXT, path=labelled, tokenizer=larger, prune_vocabulary=True)
    assert pieces_of(data.train, data) == pieces_of(whole.train, whole)
    assert data.fingerprint != whole.fingerprint
    assert (
        data.vocabulary.size == whole.preprocessing["vocabulary_size"] > data.preprocessing["vocabulary_size"]
    )
    assert data.vocabulary.facts["lost"]["train"] == 0
    # each validation text ends with a number that no other has: its pieces may be others
    lost = data.vocabulary.lost["validation"]
    theirs, ours = (sum(map(len, pieces_of(each.validation, each))) for each in (whole, data))
    assert 0 < lost < 1
    assert ours > theirs
    (notice,) = (each for each in data.notices if each.kind == "pruned_vocabulary")
    assert notice.count == data.vocabulary.size - len(data.vocabulary.kept)
    assert whole.vocabulary is None
    same = text(**TEXT, path=labelled, tokenizer=larger, prune_vocabulary=False)
    assert same.fingerprint == whole.fingerprint


def test_samples_without_labels_are_counted(labelled, folder, larger):
    more = folder(train={"sentence": [f"it was {line}" for line in sentences(60, 500)[0]]})
    alone = text(**TEXT, path=labelled, tokenizer=larger, prune_vocabulary=True)
    both = text(**TEXT, path=labelled, tokenizer=larger, prune_vocabulary=True, unlabelled_path=more)
    assert set(alone.vocabulary.kept.tolist()) < set(both.vocabulary.kept.tolist())


def test_tagged_words_keep_their_tags(tagged, tokenizer):
    options = {
        "name": "tokens",
        "tokens_column": "tokens",
        "tags_column": "upos",
        "tokenizer": tokenizer,
        **SET,
    }
    whole, data = (tokens(**options, path=tagged, prune_vocabulary=wanted) for wanted in (False, True))
    assert pieces_of(data.train, data) == pieces_of(whole.train, whole)
    (before,), (after,) = (each.train.batches(len(each.train)) for each in (whole, data))
    assert before.targets.equal(after.targets)


@pytest.mark.parametrize("mask_share", [None, 0.2])
def test_blocks_of_text_are_predicted_over_what_stays(tmp_path, byte_pairs, mask_share):
    (tmp_path / "it.txt").write_text("\n".join(sentences(200)[0]))
    options = {
        "name": "blocks", "text_column": "text", "separator": "", "block_size": 16, "tokenizer": byte_pairs,
        "mask_share": mask_share, "path": str(tmp_path / "it.txt"), "test_fraction": 0.2, "validation_fraction": 0.2,
    }  # fmt: skip
    whole, data = (text_blocks(**options, prune_vocabulary=wanted) for wanted in (False, 4))
    extra = 0 if mask_share is None else 1  # a number for what is hidden
    assert (
        data.num_classes
        == len(data.vocabulary.kept)
        == data.preprocessing["vocabulary_size"]
        < whole.num_classes
    )
    assert len(described(data.preprocessing["tokenizer"]).rust.get_vocab()) == data.num_classes - extra
    if extra:
        assert data.vocabulary.kept[-1] == data.vocabulary.size - 1 == whole.num_classes - 1
    for split in ("train", "validation", "test"):
        ids = [part.columns["input_ids"] for part in (getattr(each, split) for each in (data, whole))]
        rust = [described(each.preprocessing["tokenizer"]).rust for each in (data, whole)]
        first, second = (one.decode(each[:2000].tolist()) for one, each in zip(rust, ids, strict=True))
        assert first[:200] == second[:200]
    with pytest.raises(OptionError, match=says("num_classes", "null")):
        text_blocks(**options, prune_vocabulary=True, num_classes=400)
    with pytest.raises(OptionError, match=says("prune_vocabulary", "false")):
        python_docs(name="docs", tokenizer="characters", block_size=16, test_fraction=0.1, validation_fraction=0.1,
                    prune_vocabulary=True)  # fmt: skip


def test_texts_that_follow_keep_the_token_by_which_they_start(folder, larger):
    lines = sentences(80)[0]
    path = folder(train={"source": lines, "answer": [line.split()[-1] for line in lines]})
    options = {
        "name": "pairs", "text_column": "source", "target_column": "answer", "tokenizer": larger, "path": path,
        "max_target_length": 6, "decoder_start_id": 60, **SET,
    }  # fmt: skip
    whole, data = (text_to_text(**options, prune_vocabulary=wanted) for wanted in (False, True))
    assert data.num_classes == len(data.vocabulary.kept) < whole.num_classes
    (before,), (after,) = (each.train.batches(len(each.train)) for each in (whole, data))
    asked = after.targets != -100
    assert asked.equal(before.targets != -100)
    assert (data.vocabulary.kept[after.targets[asked].numpy()] == before.targets[asked].numpy()).all()
    assert (data.vocabulary.kept[after.inputs["decoder_input_ids"].numpy()[:, 0]] == 60).all()

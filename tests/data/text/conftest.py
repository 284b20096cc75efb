"""Small sets of texts on disk, and a tokenizer that is made here."""

import itertools
import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from text_sets import sentences
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


@pytest.fixture
def folder(tmp_path):
    """A function that writes parquet files of the splits {name: columns}; returns the folder."""

    numbers = itertools.count()

    def write(features=None, **splits):
        root = tmp_path / f"set{next(numbers)}"
        for split, columns in splits.items():
            made = Dataset.from_dict(columns, features=features)
            made.to_parquet(root / f"{split}-00000-of-00001.parquet")
        return str(root)

    return write


@pytest.fixture
def labelled(folder):
    """A set of sentences with a class each: train, validation and test."""
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["even", "odd"])})
    parts = {}
    for split, count, start in (("train", 60, 0), ("validation", 20, 100), ("test", 20, 200)):
        texts, labels = sentences(count, start)
        parts[split] = {"sentence": texts, "label": labels}
    return folder(features, **parts)


@pytest.fixture
def tagged(folder):
    """Sentences in words, a tag for each."""
    features = Features({"tokens": List(Value("string")), "upos": List(ClassLabel(names=["A", "B", "C"]))})
    parts = {}
    for split, count, start in (("train", 30, 0), ("test", 10, 100)):
        words = [text.split() for text in sentences(count, start)[0]]
        parts[split] = {"tokens": words, "upos": [[len(w) % 3 for w in row] for row in words]}
    return folder(features, **parts)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer.json as BERT's: [PAD] 3, [CLS] text [SEP], types of pairs; at most 12 tokens."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    made.train_from_iterator(sentences(40)[0], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    root = tmp_path_factory.mktemp("tokenizer")
    made.save(str(root / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "model_max_length": 12}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    return str(root)


@pytest.fixture(scope="session")
def byte_pairs(tmp_path_factory):
    """A tokenizer.json of byte-level pairs without special tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(sentences(40)[0], trainer)
    file = tmp_path_factory.mktemp("pairs") / "tokenizer.json"
    made.save(str(file))
    return str(file)

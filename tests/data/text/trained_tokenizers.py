"""Tokenizers of each kind, trained on the texts of the Python documentation."""

import functools
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compresskd.data.text.tokenizer import Pieces

LINES = [line for name in sorted(topics)[:12] for line in topics[name].splitlines() if line.strip()]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<later>"]
KINDS = ("WordPiece", "bytes", "suffixes", "sentencepiece", "Unigram")


@functools.cache
def trained(kind):
    """A tokenizer of one kind, and what its unknown token is, if there is one."""
    options = {"vocab_size": 1500, "special_tokens": SPECIAL[:4], "show_progress": False}
    if kind == "WordPiece":
        rust, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer(**options)
        rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    elif kind == "bytes":
        rust, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
    elif kind == "suffixes":
        rust = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        trainer = trainers.BpeTrainer(**options, end_of_word_suffix="</w>")
        rust.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        made = models.Unigram() if kind == "Unigram" else models.BPE(unk_token="[UNK]", byte_fallback=True)
        rust, more = Tokenizer(made), {"unk_token": "[UNK]"} if kind == "Unigram" else {}
        trainer = (trainers.UnigramTrainer if kind == "Unigram" else trainers.BpeTrainer)(**options, **more)
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.train_from_iterator(LINES, trainer)
    if kind == "bytes":  # as RoBERTa's
        rust.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
        pairs = [("[CLS]", 2), ("[SEP]", 3)]
        rust.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, pairs)
    rust.add_special_tokens(SPECIAL[4:])  # one that the model does not know
    return Pieces(rust, 0)

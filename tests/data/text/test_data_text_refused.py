"""Texts that a model cannot take, or that are asked another thing: refused before anything is trained."""

import json
import random

import pytest
from refusals import fault, name_of, refused

pytestmark = pytest.mark.slow

WORDS = ("a", "good", "bad", "film", "was", "dull", "fine", "it")
SIZES = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16"
GPT = "n_layer: 1, n_embd: 16, n_head: 2"
TEXTS = ("task=text_classification", "data.path=good.jsonl", "data.tokenizer=words/tokenizer.json")
TAGS = ("task=token_classification", "data.path=tags.jsonl", "data.tokenizer=words/tokenizer.json")
BLOCKS = (
    "task=causal_lm",
    "teacher=huggingface",
    "data=text_blocks",
    "data.path=long.txt",
    "data.tokenizer=characters",
)


def bert(more=""):
    return f"teacher.config={{model_type: bert, {SIZES}{more}}}"


def gpt(more=""):
    return f"teacher.config={{model_type: gpt2, {GPT}{more}}}"


# what is typed, and what is said of it
REFUSED = [
    ((*TEXTS, bert(", vocab_size: 4")), fault("teacher.config.vocab_size", "4", "9", "data.tokenizer=DIR")),
    ((*TEXTS, bert(", max_position_embeddings: 8")), fault("teacher", "[12]", "data.max_length=8")),
    ((*BLOCKS, "data.block_size=40", gpt(", n_positions: 32")), fault("teacher", "data.block_size=32")),
    ((*TEXTS, bert(), "data.tokenizer=bare/tokenizer.json"), fault("data.tokenizer", "bare", "pad_token")),
    ((*TEXTS, bert(), "data.tokenizer=characters"), fault("data.tokenizer", "padding", "data.tokenizer=bytes")),
    ((*BLOCKS, bert()), fault("teacher.config.is_decoder", "false", "true")),
    ((*TEXTS, bert(), "data.path=unlabelled.jsonl"), fault("data.label_column", "None", "row 3")),
    ((*TAGS, bert()), fault("data.tags_column", "0.5", "row 0")),
    ((*TEXTS, bert(), "data.path=empty.jsonl", "data.skip_bad=true"), fault("data", "train split", "no sample")),
    ((*BLOCKS, gpt(), "data.path=empty.txt"), fault("data", "empty.txt", "nothing")),
    ((*BLOCKS, gpt(), "data.path=bytes.txt"), fault("data", "bytes.txt", "utf-8")),
    (
        (*TEXTS, bert(), "task=causal_lm", "data=text", "teacher=huggingface"),
        fault("task", "causal_lm", "one class a sample"),
    ),
    (("task=masked_lm", "data=digits"), fault("task", "masked_lm", "one class a sample")),
]  # fmt: skip


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(work):
    """What the command lines name, in the working directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(48)]
    for name, rows in {
        "good": [(text, row % 2) for row, text in enumerate(texts)],
        "unlabelled": [(text, row % 2 if row != 3 else None) for row, text in enumerate(texts)],
        "empty": [(" ", row % 2) for row in range(48)],
    }.items():
        write(work / f"{name}.jsonl", [{"text": text, "label": label} for text, label in rows])
    write(work / "tags.jsonl", [{"tokens": text.split(), "tags": [0.5] * 12} for text in texts])
    (work / "long.txt").write_text("\n".join(texts))
    (work / "empty.txt").touch()
    (work / "bytes.txt").write_bytes(bytes(range(128, 256)))
    for folder, special in {"words": ["[PAD]"], "bare": []}.items():
        numbers = {word: number for number, word in enumerate((*special, *WORDS))}
        made = Tokenizer(models.WordLevel(numbers, unk_token="a"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.add_special_tokens(special)
        (work / folder).mkdir()
        made.save(str(work / folder / "tokenizer.json"))


@pytest.mark.parametrize(("typed", "said"), REFUSED, ids=[name_of(said) for _, said in REFUSED])
def test_refused_before_anything_is_trained(typed, said, files, run_cli):
    last = {line.partition("=")[0]: line for line in typed}  # of a key that is typed twice
    refused(run_cli(*last.values()), said)


def test_an_encoder_that_is_told_to_be_a_decoder_is_a_language_model(files, run_cli, work):
    ended = run_cli(
        *BLOCKS, bert(", is_decoder: true"), "data.block_size=16", "strategy=compress", "rank=2",
        "train.max_steps=1", "teacher_fit.train.max_steps=1", "measure.latency=false",
    )  # fmt: skip
    assert ended.status == 0, ended.err

import math
from pathlib import Path

import pytest
import torch
from refusals import says
from text_sets import CUTS, kinds
from torch import nn

from compresskd.data.text.blocks import chunks, python_docs, text_blocks
from compresskd.data.text.tokenizer import tokenizer_of
from compresskd.tasks import IGNORED, CausalLM
from compresskd.training.evaluation import evaluate

OPTIONS = {
    "name": "text_blocks",
    "text_column": "text",
    "separator": "",
    "tokenizer": "characters",
    "block_size": 8,
}
TEXT = "".join(f"Größe {i * i} of {i}\n" for i in range(60))


def load(**options):
    return text_blocks(**{**OPTIONS, **CUTS, **options})


@pytest.fixture
def file(tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "it.txt").write_text(TEXT)
    return str(tmp_path / "alone" / "it.txt")


class Unigram(nn.Module):
    """The same probabilities everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return self.logits.expand(*input_ids.shape, -1)


def test_blocks_follow_each_other_and_the_end_is_cut_off(file):
    data = load(path=file)
    characters = sorted(set(TEXT))
    ids = [characters.index(c) for c in TEXT]
    blocks = [ids[i : i + 8] for i in range(0, len(ids) - 7, 8)]
    num_test = round(0.2 * len(blocks))
    num_validation = round(0.2 * (len(blocks) - num_test))
    sizes = [len(blocks) - num_test - num_validation, num_validation, num_test]
    assert [len(s) for s in (data.train, data.validation, data.test)] == sizes
    assert data.num_classes == len(characters)
    (batch,) = data.validation.batches(sizes[1])
    assert list(batch.inputs) == ["input_ids"]
    assert batch.inputs["input_ids"].tolist() == blocks[sizes[0] : sizes[0] + sizes[1]]
    assert torch.equal(batch.inputs["input_ids"], batch.targets)
    assert kinds(data)[0] == "left_out"


def test_rows_of_files_and_columns_are_one_text(folder, file):
    rows = TEXT.splitlines(keepends=True)
    columns = load(path=folder(all={"text": rows}))
    lines = load(path=folder(all={"text": [row.rstrip("\n") for row in rows]}), separator="\n")
    assert load(path=file).fingerprint == columns.fingerprint
    assert load(path=str(Path(file).parent)).fingerprint == columns.fingerprint
    assert torch.equal(lines.train.targets, columns.train.targets)


@pytest.mark.parametrize("named", ["characters", "bytes", "pairs"])
def test_perplexity_and_bits_per_byte_of_a_unigram_model(file, byte_pairs, named):
    tokenizer = byte_pairs if named == "pairs" else named
    data = load(path=file, tokenizer=tokenizer, block_size=16)
    made = tokenizer_of(tokenizer, lambda: [TEXT])
    ids, sizes = made.pieces(TEXT)
    first = 16 * (len(data.train) + len(data.validation))
    logits = torch.randn(data.num_classes, generator=torch.Generator().manual_seed(0))
    nats, num_bytes, count = 0.0, 0, 0
    for start in range(first, first + 16 * len(data.test), 16):
        for place in range(start + 1, start + 16):
            nats -= float(logits.double().log_softmax(0)[int(ids[place])])
            num_bytes += int(sizes[place])
            count += 1
    assert data.test.num_bytes == num_bytes
    scores = evaluate(Unigram(logits), data.test, CausalLM(), batch_size=4)
    assert scores.values["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert scores.values["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_the_predicted_bytes_of_characters_are_those_of_all_but_the_first(file):
    data = load(path=file)
    start = 8 * (len(data.train) + len(data.validation))
    text = [TEXT[i : i + 8] for i in range(start, start + 8 * len(data.test), 8)]
    assert data.test.num_bytes == sum(len(block[1:].encode()) for block in text)
    few = data.test.take(torch.tensor([1]), "few")
    assert few.num_bytes == len(text[1][1:].encode())


def test_streamed_text_is_that_in_memory(file):
    plain, streamed = load(path=file), load(path=file, max_in_memory_bytes=0)
    assert streamed.train.streamed
    assert streamed.fingerprint == plain.fingerprint
    for epoch in (None, 1):
        pairs = zip(plain.train.batches(4, epoch=epoch), streamed.train.batches(4, epoch=epoch), strict=True)
        assert all(torch.equal(a.targets, b.targets) for a, b in pairs)


def test_a_larger_vocabulary_of_the_model_is_accepted(file):
    characters = len(set(TEXT))
    assert load(path=file, num_classes=characters + 3).num_classes == characters + 3
    with pytest.raises(ValueError, match=says("num_classes", f">= {characters}")):
        load(path=file, num_classes=characters - 1)


def test_chunks_are_the_text_cut_at_ends_of_lines(monkeypatch, byte_pairs):
    monkeypatch.setattr("compresskd.data.text.blocks._CHARACTERS_AT_ONCE", 100)
    texts = [TEXT[:250], TEXT[250:260], TEXT[260:]]
    found = list(chunks(texts, ""))
    assert "".join(found) == TEXT
    assert len(found) > 5
    assert all(part.endswith("\n") for part in found)
    made = tokenizer_of(byte_pairs, lambda: ())
    assert [i for part in found for i in made.pieces(part)[0].tolist()] == made.pieces(TEXT)[0].tolist()
    words = "one two  three " * 40
    assert "".join(chunks([words], "")) == words
    assert "".join(chunks(["x" * 1000, "y"], " ")) == "x" * 1000 + " y"


def test_the_documentation_of_python_is_a_text_without_a_download():
    data = python_docs(name="python_docs", tokenizer="characters", block_size=64, **CUTS)
    assert 80 < data.num_classes < 300
    assert len(data.train) > 3000
    assert data.preprocessing["max_length"] == 64
    ids = data.train.targets[0].tolist()
    assert "".join(data.preprocessing["tokenizer"]["characters"][i] for i in ids).startswith('The "assert"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "txt"}, says("text_column", "did you mean text")),
        ({"block_size": 10**6}, says("block_size", "1000000")),
        ({"tokenizer": None}, says("tokenizer", "null")),
        ({"validation_fraction": None}, says("validation_fraction", "null")),
    ],
    ids=["column", "block", "tokenizer", "fraction"],
)
def test_what_does_not_fit_is_refused(file, options, message):
    with pytest.raises(ValueError, match=message):
        load(path=file, **options)


def test_only_the_beginning_of_a_split_may_be_scored(file):
    whole, short = load(path=file), load(path=file, num_test=2, num_validation=1)
    assert (len(short.test), len(short.validation), len(short.train)) == (2, 1, len(whole.train))
    (batch,), (first, *_) = short.test.batches(2), whole.test.batches(2)
    assert torch.equal(batch.inputs["input_ids"], first.inputs["input_ids"])
    assert short.test.num_bytes == int(whole.test.sizes[:2].sum())
    assert short.test.fingerprint != whole.test.fingerprint
    assert short.train.fingerprint == whole.train.fingerprint
    told = {n.split: n.count for n in short.notices if n.kind == "limited"}
    assert told == {"test": len(whole.test) - 2, "validation": len(whole.validation) - 1}
    enough = load(path=file, num_test=10**6)
    assert enough.fingerprint == whole.fingerprint
    assert "limited" not in kinds(enough)


def masked(tmp_path, **options):
    (tmp_path / "it.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(400)))
    return text_blocks(**{
        "name": "masked_blocks", "text_column": "text", "separator": "", "tokenizer": "characters", "block_size": 16,
        "path": str(tmp_path / "it.txt"), "test_fraction": 0.2, "validation_fraction": 0.2, "mask_share": 0.15,
        **options,
    })  # fmt: skip


def test_hidden_tokens_are_the_targets_and_other_ones_in_each_epoch(tmp_path):
    data = masked(tmp_path)
    plain = masked(tmp_path, mask_share=None)
    assert data.num_classes == plain.num_classes + 1  # the mask token
    assert data.train.num_views is None
    whole = list(data.train.batches(32, epoch=1, seed=3))
    again = list(data.train.batches(32, epoch=1, seed=3, start=2))
    for one, other in zip(whole[2:], again, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        assert torch.equal(one.targets, other.targets)
    other = next(data.train.batches(32, epoch=2, seed=3))
    assert not torch.equal(other.targets != IGNORED, whole[0].targets != IGNORED)
    fixed = [next(data.test.batches(32)).targets for _ in range(2)]
    assert torch.equal(*fixed)
    ids = torch.cat([b.inputs["input_ids"] for b in whole])
    targets = torch.cat([b.targets for b in whole])
    hidden = targets != IGNORED
    kept = {tuple(row.tolist()) for row in plain.train.targets}
    assert {tuple(row.tolist()) for row in torch.where(hidden, targets, ids)} <= kept
    share = float(hidden.float().mean())
    assert share == pytest.approx(0.15, abs=0.03)
    assert float((ids[hidden] == data.num_classes - 1).float().mean()) == pytest.approx(0.8, abs=0.08)
    one = next(data.test.take(torch.arange(1), "").batches(1))
    assert (one.targets != IGNORED).any()  # a batch without a target would have no loss

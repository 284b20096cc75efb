"""Pairs of texts: what the decoder is given, what it is asked, and what is refused."""

import json
import shutil

import pytest
import torch
from refusals import says
from text_sets import CUTS, kinds

from compresskd.data.text.translated import text_to_text
from compresskd.tasks import IGNORED, Seq2SeqLM

OPTIONS = {
    "name": "text_to_text", "text_column": "text", "target_column": "target", "tokenizer": "bytes", "max_length": None,
    "max_target_length": 8, "decoder_start_id": 1, "group_by_length": True, "skip_bad": False, **CUTS,
}  # fmt: skip


def rows(count=60):
    return [{"text": f"{i * 7919 % 1000}+{i}", "target": str(i * 7919 % 1000 + i)} for i in range(count)]


@pytest.fixture
def file(tmp_path):
    def write(lines):
        path = tmp_path / "sums.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        return str(path)

    return write


def load(path, **options):
    return text_to_text(**{**OPTIONS, "path": path, **options})


def decoded(ids):
    return bytes(ids[ids >= 0].tolist()).decode()


def test_the_decoder_is_given_what_is_before_each_target(file):
    data = load(file(rows()))
    expected = {row["text"]: row["target"] for row in rows()}
    seen = 0
    for batch in data.train.batches(7, epoch=0, seed=1):
        ids, before = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
        assert before.shape == batch.targets.shape
        assert (batch.targets != IGNORED).any(dim=0).all()  # no longer than the longest
        assert (before[:, 0] == 1).all()
        for row in range(len(ids)):
            text = decoded(ids[row][batch.inputs["attention_mask"][row] == 1])
            target = batch.targets[row]
            assert decoded(target) == expected[text]
            count = int((target != IGNORED).sum())
            assert torch.equal(before[row, 1:count], target[: count - 1])
            seen += 1
    assert seen == len(data.train)
    assert data.num_classes == 256
    assert data.test.num_bytes == sum(len(decoded(row)) for row in data.test.targets)


def test_the_targets_fit_the_task_and_the_start_counts(file):
    path = file(rows())
    data, other = load(path), load(path, decoder_start_id=2)
    assert Seq2SeqLM().faults(data.train.targets, data.num_classes) is None
    assert data.fingerprint != other.fingerprint
    assert load(path).fingerprint == data.fingerprint
    two = data.train.take(torch.tensor([3, 1]), "x")
    assert torch.equal(two.targets, data.train.targets[[3, 1]])
    assert next(two.batches(2)).inputs["decoder_input_ids"][0, 0] == 1


def test_what_is_cut_is_told(file):
    data = load(file(rows()), max_target_length=2, max_length=3)
    assert max(batch.targets.shape[1] for batch in data.train.batches(8)) == 2
    assert kinds(data) == ["truncated", "truncated"] * (len(kinds(data)) // 2)
    assert any("max_target_length" in notice.text for notice in data.notices)


def test_the_start_is_what_the_configuration_beside_the_tokenizer_says(file, tokenizer, tmp_path):
    tokenizer = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    made = load(file(rows()), tokenizer=str(tokenizer), decoder_start_id=None)
    assert made.train.decoder_start == made.preprocessing["padding_id"]
    (tokenizer / "config.json").write_text('{"decoder_start_token_id": 2}')
    assert load(file(rows()), tokenizer=str(tokenizer), decoder_start_id=None).train.decoder_start == 2


def test_pairs_with_an_empty_text_are_refused_or_left_out(file):
    path = file([*rows(), {"text": "1+1", "target": " "}])
    with pytest.raises(ValueError, match="empty text"):
        load(path)
    assert "skipped" in kinds(load(path, skip_bad=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_column": "answer"}, ("target_column", "answer")),
        ({"text_column": "question"}, ("text_column", "question")),
        ({"decoder_start_id": 256}, ("decoder_start_id", "256")),
        ({"max_target_length": 0}, ("max_target_length", "0")),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[0],
)
def test_what_does_not_fit_is_refused(options, words, file):
    from compresskd.options import checked

    with pytest.raises(ValueError, match=says(*words)):
        checked(text_to_text)(**{**OPTIONS, "path": file(rows()), **options})

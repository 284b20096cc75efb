import numpy as np
import pytest
import torch

from compresskd.data.cache import Cache
from compresskd.data.notice import Notice
from compresskd.data.text.sequences import Block, collected


def blocks(seed=0, columns=("input_ids",)):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        lengths = rng.integers(1, 9, 7)
        made = {name: rng.integers(0, 50, lengths.sum(), dtype=np.int32) for name in columns}
        yield Block(made, lengths, {"targets": rng.integers(0, 2, 7)})


def fail():
    raise AssertionError("asked for")
    yield


@pytest.fixture
def streaming(tmp_path):
    return Cache(tmp_path / "kept", 64)


def test_files_hold_what_memory_would(tmp_path, streaming):
    columns = ("input_ids", "token_type_ids")
    plain = collected(blocks(columns=columns), [], Cache(tmp_path / "none", 10**6), "key", "it")
    assert not plain.streamed
    assert not (tmp_path / "none").exists()
    notices = [Notice("truncated", "train", 1, "one", ("a",))]
    kept = collected(blocks(columns=columns), notices, streaming, "key", "it")
    assert kept.streamed
    assert kept.notices == tuple(notices)
    assert torch.equal(plain.offsets, kept.offsets)
    assert torch.equal(plain.more["targets"], kept.more["targets"])
    for name in columns:
        assert torch.equal(plain.columns[name], kept.columns[name])
    assert torch.equal(plain.hashes(), kept.hashes())


def test_what_was_kept_is_not_made_again_unless_it_is_damaged(streaming, caplog):
    first = collected(blocks(), [], streaming, "key", "it")
    again = collected(fail(), [], streaming, "key", "it")
    assert torch.equal(first.columns["input_ids"], again.columns["input_ids"])
    file = streaming.directory / "key" / "input_ids.i32"
    file.write_bytes(file.read_bytes()[:-4])
    third = collected(blocks(), [], streaming, "key", "it")
    assert torch.equal(first.offsets, third.offsets)
    assert "not used" in caplog.text
    assert [p.name for p in streaming.directory.iterdir() if p.suffix != ".lock"] == ["key"]


def test_what_fails_on_the_way_leaves_no_files(streaming):
    def broken():
        yield from blocks()
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        collected(broken(), [], streaming, "key", "it")
    assert [p.name for p in streaming.directory.iterdir() if p.suffix != ".lock"] == []


def test_hashes_tell_samples_apart(streaming):
    rows = [[1, 2], [2, 1], [1, 2, 0], [0], [], [1, 2]]
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    block = Block({"input_ids": ids}, np.array(list(map(len, rows))))
    hashes = collected([block], [], streaming, "key", "it").hashes().tolist()
    assert hashes[0] == hashes[5]
    assert len(set(hashes)) == 5

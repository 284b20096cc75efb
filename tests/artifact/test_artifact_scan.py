"""Structure is told from text, whatever msgpack writes."""

import random
import zlib

import msgpack
import pytest
import torch

from compresskd import artifact
from compresskd.artifact.scan import structure_bytes
from compresskd.models.build import build

MANY = 2**30


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 5, 5), ("a" * 31, 31), ("a" * 200, 200), ("a" * 3000, 3000), ("a" * 70_000, 70_000),
        (b"a" * 5, 5), (b"a" * 3000, 3000), (b"a" * 70_000, 70_000),
        ([1, -1, 127, 128, 70_000, 2**33, -5, -200, -70_000, -(2**33), 1.5, None, True], 0),
        ({"key": [["text"] * 20, {str(i): i for i in range(40)}]}, 3 + 80 + sum(len(str(i)) for i in range(40))),
        ([[0] * 20, [0] * 70_000, dict.fromkeys(range(70000), 0)], 0),
    ],
    ids=range(11),
)  # fmt: skip
def test_of_every_kind_of_value(value, text):
    data = msgpack.packb(value)
    assert structure_bytes(data, MANY) == len(data) - text


def test_a_scan_ends_where_there_is_too_much():
    data = msgpack.packb([[[]]] * 100_000)
    assert 1000 < structure_bytes(data, 1000) < 1100


def test_what_is_cut_off_or_no_msgpack_ends_too():
    assert structure_bytes(b"\xdb\xff\xff\xff\xff", MANY) == 5
    assert structure_bytes(b"\xdb", MANY) == 5
    assert structure_bytes(b"\xc1" * 10, MANY) == 10


@pytest.mark.slow
def test_a_large_tokenizer_is_stored_and_read_back(tmp_path):
    options = {"hidden": [4], "num_classes": 2, "input_shape": [1, 2, 2]}
    model = build("compresskd.models.mlp.MLP", options, seed=0)
    draw = random.Random(0)
    words = " ".join(f"{draw.getrandbits(80):x}" for _ in range(250_000))
    assert len(zlib.compress(words.encode())) > 2**21  # more than is read at first
    about = {"class_names": ["a", "b"], "preprocessing": {"tokenizer": {"json": words}}}
    artifact.write_compact(artifact.content_of(model, about), tmp_path / "model.ckd")
    read, content = artifact.load_with_content(tmp_path / "model.ckd")
    assert content.about["preprocessing"]["tokenizer"]["json"] == words
    x = torch.randn(4, 1, 2, 2)
    assert torch.equal(read(x), model.eval()(x))

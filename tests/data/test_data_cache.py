import json
import logging
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from compresskd.data.cache import Cache, Stream


@pytest.fixture
def pixels(draw):
    return draw(9, (1, 4, 3))


class Opener:
    """Opens the same samples, and counts how often."""

    def __init__(self, pixels):
        self.pixels, self.count = pixels, 0

    def __call__(self):
        self.count += 1
        labels = np.arange(len(self.pixels)) % 3
        blocks = ((self.pixels[part], labels[part]) for part in (slice(0, 4), slice(4, 9)))
        return Stream(("a", "b", "c"), blocks)


def fetch(opener, **options):
    source, class_names = Cache.at(None, options.get("max_in_memory_bytes", 10**6)).fetch("key", "X", opener)
    assert class_names == ("a", "b", "c")
    np.testing.assert_array_equal(source.pixels.numpy(), opener.pixels)
    assert source.targets.tolist() == [0, 1, 2] * 3
    return source


def test_samples_are_decoded_once(pixels, cache_dir):
    opener = Opener(pixels)
    first, second = fetch(opener), fetch(opener)
    assert opener.count == 1
    assert not first.streamed
    assert first.digest == second.digest
    assert sorted(file.name for file in cache_dir.iterdir()) == ["key.bin", "key.json", "key.lock"]


def test_large_samples_are_mapped_and_equal(pixels):
    opener = Opener(pixels)
    resident, mapped = fetch(opener), fetch(opener, max_in_memory_bytes=10)
    assert mapped.streamed
    assert resident.digest == mapped.digest
    assert torch.equal(mapped.pixels[torch.tensor([8, 0])], resident.pixels[torch.tensor([8, 0])])


def flip_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "pixel": lambda folder: flip_bit(folder / "key.bin", 17),
    "target": lambda folder: flip_bit(folder / "key.bin", -8),
    "truncated": lambda folder: (folder / "key.bin").write_bytes((folder / "key.bin").read_bytes()[:-3]),
    "no pixels": lambda folder: (folder / "key.bin").unlink(),
    "empty header": lambda folder: (folder / "key.json").write_bytes(b""),
    "foreign header": lambda folder: (folder / "key.json").write_text('{"shape": 3}'),
    "class name": lambda folder: (folder / "key.json").write_text(
        (folder / "key.json").read_text().replace('"b"', '"B"')
    ),
    "older format": lambda folder: (folder / "key.json").write_text(
        json.dumps({**json.loads((folder / "key.json").read_text()), "format": 0})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(pixels, cache_dir, damage):
    opener = Opener(pixels)
    fetch(opener)
    DAMAGE[damage](cache_dir)
    fetch(opener)
    assert opener.count == 2
    fetch(opener)
    assert opener.count == 2


def test_a_truncated_entry_that_would_be_mapped_is_made_again(pixels, cache_dir, caplog):
    opener = Opener(pixels)
    fetch(opener)
    DAMAGE["truncated"](cache_dir)
    with caplog.at_level(logging.WARNING):
        fetch(opener, max_in_memory_bytes=0)
    assert opener.count == 2
    assert "expected 252 bytes, got 249" in caplog.text


def test_failing_on_the_way_leaves_nothing_behind(pixels, cache_dir):
    def broken():
        yield pixels[:4], np.zeros(4, np.int64)
        raise OSError("the source is gone")

    with pytest.raises(ValueError, match="X cannot be read: OSError: the source is gone"):
        Cache.at(None, 0).fetch("key", "X", lambda: Stream(("a",), broken()))
    assert [file.name for file in cache_dir.iterdir()] == ["key.lock"]
    with pytest.raises(ValueError, match="X has no image"):
        Cache.at(None, 0).fetch("key", "X", lambda: Stream(("a",), iter(())))
    fetch(Opener(pixels))


def test_a_full_disk_is_told_with_what_to_write(pixels, cache_dir):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"decoded images of X cannot be written to .*; write data.cache_dir=DIR"
        ):
            fetch(Opener(pixels))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in cache_dir.iterdir()] == ["key.lock"]


def test_a_folder_that_cannot_be_made_is_told(pixels, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be written to .*file/cache.* write data.cache_dir=DIR"):
        Cache.at(str(tmp_path / "file" / "cache"), 0).fetch("key", "X", Opener(pixels))


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="max_in_memory_bytes: got -1, expected"):
        Cache.at(None, -1)


SLOW_LOAD = """
import logging, sys, time
import numpy as np
from compresskd.data.cache import Cache, Stream
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
def blocks():
    for number in range(8):
        time.sleep(0.1)
        yield np.full((2, 1, 3, 3), number, np.uint8), np.array([number, number])
source, _ = Cache.at(sys.argv[1], 10**6).fetch("key", "X", lambda: Stream(("a",), blocks()))
print(source.digest, source.targets.tolist() == [n // 2 for n in range(16)])
"""


def test_processes_that_start_together_decode_once(tmp_path):
    command = [sys.executable, "-c", SLOW_LOAD, str(tmp_path / "shared")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [job.communicate(timeout=60)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert sum(output.count("decoding X once") for output in outputs) == 1
    answers = {output.splitlines()[-1] for output in outputs}
    assert len(answers) == 1
    assert answers.pop().endswith(" True")

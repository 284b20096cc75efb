import hashlib
import os

import torch

from compresskd.data import digest
from compresskd.data.digest import content_digest, files_digest, seal


def test_samples_hashed_in_parts_have_the_digest_of_the_whole():
    pixels, targets = torch.arange(24, dtype=torch.uint8).view(4, 1, 2, 3), torch.arange(4)
    hasher = hashlib.sha256()
    for part in pixels.split(3):
        hasher.update(part.numpy().tobytes())
    whole = content_digest(pixels, targets)
    assert seal(hasher, targets, shape=(4, 1, 2, 3), dtype="uint8") == whole
    variants = [(pixels.view(4, 1, 3, 2), targets), (pixels, targets.flip(0)), (pixels + 1, targets)]
    assert whole not in {content_digest(*variant) for variant in variants}


def test_files_are_known_by_name_and_content_not_by_place(tmp_path):
    def folder(name, files):
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return files_digest(tmp_path / name, sorted((tmp_path / name).rglob("*.txt")))

    base = folder("a", {"x.txt": "1", "y/z.txt": "2"})
    assert folder("b", {"x.txt": "1", "y/z.txt": "2"}) == base
    assert folder("c", {"x.txt": "1", "y/z.txt": "3"}) != base
    assert folder("d", {"x.txt": "1", "z.txt": "2"}) != base


def test_large_sets_are_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "_READ_WHOLE_BYTES", 3)
    file = tmp_path / "x.txt"
    file.write_text("abcd")
    os.utime(file, ns=(1, 1))
    before = files_digest(tmp_path, [file])
    assert files_digest(tmp_path, [file]) == before
    file.write_text("efgh")
    os.utime(file, ns=(1, 1))  # which the time of the last change of the file tells
    assert files_digest(tmp_path, [file]) != before

"""The file of tensors: that of the package safetensors byte for byte, and refused where it is damaged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compresskd.artifact import ArtifactError
from compresskd.artifact.tensors import num_bytes, read_tensors, write_tensors


def tensors():
    generator = torch.Generator().manual_seed(0)
    kinds = (
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int8,
        torch.uint8, torch.bool, torch.complex64,
    )  # fmt: skip
    made = {
        f"größe.{i}": torch.randint(0, 2, (3, i + 1), generator=generator).to(k) for i, k in enumerate(kinds)
    }
    return made | {
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "a": torch.ones(2),
        "b": torch.ones(3),
    }


def test_files_are_those_of_the_package(tmp_path):
    write_tensors(tensors(), tmp_path / "ours")
    save_file(tensors(), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert num_bytes(tensors()) == (tmp_path / "ours").stat().st_size


def test_what_is_written_is_read(tmp_path):
    written = write_tensors(tensors(), tmp_path / "file")
    found, digest = read_tensors(tmp_path / "file")
    assert digest.hexdigest() == written.hexdigest()
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert found[name].untyped_storage().nbytes() == value.numel() * value.itemsize
    assert load_file(tmp_path / "file").keys() == found.keys()


def _file(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _one(**changed):
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, (2**62).to_bytes(8, "little"), _file(b"{"), _file(b"[]"), _file(b"\xff"), _file({"w": 1}),
        _file(_one(dtype="F31")), _file(_one(shape=[3])), _file(_one(shape=[-2])), _file(_one(shape=[2.0])),
        _file(_one(data_offsets=[0, 12])), _file(_one(data_offsets=[8, 0])), _file(_one(data_offsets=[0])),
        _file(_one(shape=[True, 2])), _file(_one(), b"\0" * 7), _file(_one(), b"\0" * 9),
        _file(_one(shape=[2**40], data_offsets=[0, 2**42])), _file({**_one(), "v": _one()["w"]}),
        _file(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        _file(b"[" * 100_000),
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_such_file_is_refused(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtifactError, match="file: it is damaged"):
        read_tensors(tmp_path / "file")

"""Damaged and hostile model files are refused with what is wrong. Checksums are renewed after every change, so that
what refuses is the check behind them."""

import hashlib
import json
import os
import pickle
import random
import sys
import time
import tracemalloc
import zlib

import msgpack
import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_models import GRIDS, content, factorized, mlp

from compresskd import artifact
from compresskd.artifact import ArtifactError, header
from compresskd.artifact.folder import digest
from compresskd.artifact.structures import _read_trains
from compresskd.quant.prepare import QuantSpec, prepare

TERNARY, AFFINE = GRIDS[-1], GRIDS[5]


def stored_mlp(grid=AFFINE, activations=False):
    """Two tensor trains and a dense layer, with biases in half precision."""
    from compresskd.quant.activation import calibrate

    model = factorized(mlp(), 4)
    spec = QuantSpec(
        bits=grid.bits, grid=grid.kind, core_grid=grid.kind, other_bits=16, initial_scale="absmax",
        activation_bits=8 if activations else None,
    )  # fmt: skip
    prepare(model, spec)
    if activations:
        calibrate(model, [torch.rand(4, 1, 8, 8)])
    return content(model.eval(), input_shape=[1, 8, 8])


class Compact:
    """A compact file in its parts, to be changed and sealed again."""

    def __init__(self, path, *, packed_modules=False, **options):
        self.path = path
        self.split = artifact.write_compact(stored_mlp(**options), path, coded=False)
        data = path.read_bytes()
        size = self.split.header
        self.start, self.head, self.body = data[:4], data[5:size], data[size:-8]
        assert data[4] == len(self.head) < 128
        self.fields = msgpack.unpackb(header.decompress(self.head))
        self.trains = self.fields[2]  # fc1, fc2, fc3
        if not packed_modules:  # spelled out, which is as valid, they are easier to change
            self.fields[2] = [b"", *_read_trains(self.trains)]

    def seal(self, *, start=None, head=None, body=None, length=None):
        head = header.compress(msgpack.packb(self.fields)) if head is None else head
        length = bytes([len(head) & 127 | 128, len(head) >> 7]) if length is None else length
        data = (start or self.start) + length + head + (self.body if body is None else body)
        self.path.write_bytes(data + hashlib.blake2b(data, digest_size=8).digest())

    def refused(self, words):
        with pytest.raises(ArtifactError, match=words) as refusal:
            artifact.load(self.path)
        assert str(refusal.value).startswith(str(self.path))


@pytest.fixture
def file(tmp_path):
    return Compact(tmp_path / "model.ckd")


def test_unchanged_it_loads(file):
    file.seal()
    assert artifact.load(file.path).fc1.cores[0].dtype == torch.float32


class TestDamage:
    def test_every_truncation(self, file):
        data = file.path.read_bytes()
        for size in range(0, len(data), 7):
            file.path.write_bytes(data[:size])
            file.refused("it is no compact model file|it is cut short|its checksum is not the one")

    def test_every_flipped_byte(self, file):
        data = file.path.read_bytes()
        for position in range(0, len(data), 5):
            file.path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
            file.refused("it is no compact model file|it has format|its checksum is not the one")

    def test_trailing_garbage(self, file):
        file.path.write_bytes(file.path.read_bytes() + b"garbage")
        file.refused("its checksum is not the one")

    def test_checksum_of_another_file(self, file, tmp_path):
        other = Compact(tmp_path / "other.ckd", grid=TERNARY)
        file.path.write_bytes(file.path.read_bytes()[:-8] + other.path.read_bytes()[-8:])
        file.refused("its checksum is not the one")

    @pytest.mark.parametrize(
        "data", [b"", b"CKD", b"\x00" * 100, pickle.dumps({"weight": [1.0]}), b"PK\x03\x04"]
    )
    def test_another_kind_of_file(self, file, data):
        file.path.write_bytes(data)
        file.refused("it is no compact model file|it is cut short")

    def test_a_pickle_is_not_opened(self, file, tmp_path):
        mark = tmp_path / "mark"
        torch.save({"x": _Bomb(str(mark))}, file.path)
        file.refused("it is no compact model file")
        assert not mark.exists()

    @pytest.mark.parametrize("version", [0, 1, 5, 127])
    def test_format_of_another_version(self, file, version):
        file.seal(start=b"CKD" + bytes([version]))
        file.refused(f"it has format {version}; this version reads formats 2 to 4")

    def test_a_folder_in_place_of_the_file(self, file):
        file.path.unlink()
        file.path.mkdir()
        file.refused("structure.json cannot be read: No such file")

    def test_a_pipe_in_place_of_the_file(self, file):
        file.path.unlink()
        os.mkfifo(file.path)
        file.refused("is no file")

    def test_nothing_there(self, file):
        file.path.unlink()
        file.refused("cannot be read: No such file")


class TestHeader:
    def test_a_bomb_is_not_blown_up(self, file):
        coder = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = coder.compress(bytes(10**8)) + coder.flush()
        file.seal(
            head=bomb, length=bytes([len(bomb) & 127 | 128, len(bomb) >> 7 & 127 | 128, len(bomb) >> 14])
        )
        tracemalloc.start()
        file.refused(r"header: it is larger than [\d,]+ bytes when decompressed")
        assert tracemalloc.get_traced_memory()[1] < 10**7
        tracemalloc.stop()

    @pytest.mark.parametrize(
        ("length", "words"),
        [
            (b"\xff" * 6, "header: the number at byte 4 does not end"),
            (b"\xff\xff\x7f", "header: 2097151 bytes, the file has"),
            (b"\x00", "header: it cannot be decompressed|does not end where the header does"),
        ],
    )
    def test_absurd_length(self, file, length, words):
        file.seal(length=length)
        file.refused(words)

    def test_no_compressed_data(self, file):
        file.seal(head=b"\xff" * 20)
        file.refused("header: it cannot be decompressed")

    def test_compressed_data_cut_short(self, file):
        file.seal(head=file.head[:-3])
        file.refused("header: the compressed data does not end|header: it cannot be decompressed")

    def test_garbage_after_the_compressed_data(self, file):
        file.seal(head=file.head + b"xyz")
        file.refused("header: the compressed data does not end where the header does")

    def test_nested_too_deeply(self, file):
        for depth in (40, 400, 100_000):
            head = header.compress(b"\x91" * depth + b"\x00")
            file.seal(head=head)
            file.refused("nested|[Nn]ested")

    @pytest.mark.parametrize(
        "packed", [b"\xc0", b"\x01", b"\x90", b"\xc7\x04\x05abcd", b"\xa3ab", b"\x92\xa1\xff\x80"]
    )
    def test_no_header(self, file, packed):
        file.seal(head=header.compress(packed))
        file.refused("header: ")

    @pytest.mark.parametrize("position", range(5))
    def test_a_field_of_another_type(self, file, position):
        file.fields[position] = 7
        file.seal()
        file.refused("header: expected a (str|dict|list|bytes), got 7")


HOSTILE_FIELDS = {
    "target outside": (lambda f: f.__setitem__(0, ":os.system"), "'os.system' is not part of compresskd"),
    "target of torch": (lambda f: f.__setitem__(0, ":torch.nn.Linear"), "'torch.nn.Linear' is not part of compresskd"),
    "function": (lambda f: f.__setitem__(0, "models.build.build"), "expected a subclass of"),
    "imported function": (lambda f: f.__setitem__(0, "run.files.shutil.rmtree"), "expected a subclass of"),
    "the program": (lambda f: f.__setitem__(0, "__main__.main"), "is no path of a class"),
    "a file's path": (lambda f: f.__setitem__(0, "../../etc/passwd"), "expected a dotted path|is no path"),
    "nothing there": (lambda f: f.__setitem__(0, "models.mlp.Nothing"), "has no 'Nothing'"),
    "nested target": (lambda f: f[1].update(hidden=[{"_target_": "os.system", "_args_": ["x"]}]), "'os.system' is not"),
    "unknown option": (lambda f: f[1].update(depth=3), "depth: unknown option"),
    "missing option": (lambda f: f[1].pop("num_classes"), "num_classes: is missing"),
    "option of another type": (lambda f: f[1].update(hidden="wide"), "hidden"),
    "negative width": (lambda f: f[1].update(hidden=[32, -32]), "hidden"),
    "absurd width": (lambda f: f[1].update(hidden=[10**6, 10**6]), "is out of proportion"),
    "overflowing width": (lambda f: f[1].update(hidden=[2**40, 2**40]), "overflow|invalid|too large|out of proportion"),
    "absurd depth": (lambda f: f[1].update(hidden=[1] * 30_000), "over 10,000 modules is out of proportion"),
    "absurd classes": (lambda f: f[1].update(num_classes=10**9), "is out of proportion"),
    "negative rank": (lambda f: f[2][1].__setitem__(4, [-4]), "negative|rank"),
    "absurd rank": (lambda f: f[2][1].__setitem__(4, [10**8]), "rank|is out of proportion"),
    "rank of another type": (lambda f: f[2][1].__setitem__(4, ["4"]), "rank|str"),
    "too many ranks": (lambda f: f[2][1].__setitem__(4, [4] * 9), "rank|integers: expected"),
    "modes that do not fit": (lambda f: f[2][1].__setitem__(2, [3, 5]), "expected|modes|dims"),
    "module nowhere": (lambda f: f[2][1].__setitem__(0, 99), "position 99 is none of the architecture's 1..3"),
    "module at a negative place": (lambda f: f[2][1].__setitem__(0, -1), "position -1 is none"),
    "the network itself replaced": (lambda f: f[2][1].__setitem__(0, 0), "position 0 is none"),
    "class without a number": (lambda f: f[2][1].__setitem__(1, 99), "expected the number or the path of a class"),
    "module's class outside": (lambda f: f[2].__setitem__(1, [1, "os.system", {}]), "'os.system' is not part of"),
    "module without structure": (
        lambda f: f[2].__setitem__(1, [1, "compresskd.models.mlp.MLP", {}]), "it has no from_structure"),
    "entry that is none": (lambda f: f[2].__setitem__(1, "fc1"), "modules: expected \\[position, class"),
    "values missing": (lambda f: f[2].__setitem__(1, [1, 0, [8, 8]]), "takes input_dims, output_dims, ranks, got 1"),
    "way without a number": (lambda f: f[3].__setitem__(0, 999), "expected the number of a way to store"),
    "way of another type": (lambda f: f[3].__setitem__(0, "int4"), "expected the number of a way to store"),
    "granularity of nobody": (lambda f: f[3].__setitem__(0, [20, "per_planet"]), "granularity: got"),
    "granularity that does not fit": (lambda f: f[3].__setitem__(0, [20, "per_channel", 9]), "does not fit a tensor"),
    "group of nothing": (lambda f: f[3].__setitem__(0, [20, "per_group", 0]), "size: got 0, expected >= 1"),
    "grid that does not exist": (lambda f: f[3].__setitem__(0, 16 + 4 * 7), "ternary weights have bits=2"),
    "exception nowhere": (lambda f: f.append([99, 0]), "99 is no position among"),
    "half an exception": (lambda f: f.append([1]), "zip|shorter"),
    "input nowhere": (lambda f: f.extend([[], [99]]), "expected positions of layers with quantized inputs"),
    "input twice": (lambda f: f.extend([[], [1, 1]]), "expected positions of layers with quantized inputs"),
    "counters of nothing": (lambda f: f.extend([[], [], [1, 2, 3]]), "expected 0 counters"),
    "too many fields": (lambda f: f.extend([0] * 9), "expected 2 to 9 fields"),
    "key that is no name": (lambda f: f[1].update({7: 7}), "expected names as keys|is not allowed for map key"),
    "other shapes": (lambda f: f[1].update(input_shape=[1, 8, 9]), "left over|the file has|expected input"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE_FIELDS)
def test_hostile_header(file, case):
    change, words = HOSTILE_FIELDS[case]
    change(file.fields)
    file.seal()
    before, started = set(sys.modules), time.perf_counter()
    file.refused(words)
    assert time.perf_counter() - started < 20
    assert "compresskd.__main__" not in sys.modules
    assert {
        name for name in set(sys.modules) - before if not name.startswith(("compresskd", "torch"))
    } == set()


@pytest.mark.parametrize(
    ("trains", "words"),
    [
        (b"\x04", "modules: expected 2 numbers, there are 1 bytes left"),
        (b"\x04\x02\x08\x08", "modules: expected 2 numbers, there are 0 bytes left"),
        (b"\x04\xff\xff\xff\xff\x7f", "modules: expected 34359738367 numbers, there are 0 bytes left"),
        (b"\xff\xff\xff\xff\xff\xff", "modules: the number at byte 0 does not end"),
        (b"\x07\x01\x01\x01", "modules: no tensor train has the number 3 and 1 modes"),
        (b"\x04\x00", "modules: no tensor train has the number 0 and 0 modes"),
        (b"\x00\x01\x08\x08", "position 0 is none of the architecture's 1..3"),
        (b"\x40\x01\x08\x08", "position 16 is none of the architecture's 1..3"),
        (b"\x04\x02\x08\x08\x08\x04\x00", "rank|expected"),
    ],
)
def test_hostile_tensor_trains(file, trains, words):
    file.fields[2] = trains
    file.seal()
    file.refused(words)


def test_modules_may_be_spelled_out(file, tmp_path):
    packed = Compact(tmp_path / "packed.ckd", packed_modules=True)
    assert isinstance(packed.fields[2], bytes)
    file.seal()
    packed.seal()
    assert artifact.read(file.path).modules == artifact.read(packed.path).modules


class TestBody:
    @pytest.mark.parametrize(
        ("scale", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (0.0, "0.0"), (-1.0, "-1.0")]
    )
    def test_scale_that_is_none(self, file, scale, shown):
        half = torch.tensor([scale], dtype=torch.float16).view(torch.uint8).numpy().tobytes()
        file.seal(body=half + file.body[2:])
        file.refused(f"'fc1.cores.0': expected scales above zero and finite, got {shown}")

    @pytest.mark.parametrize("size", [1, 2, 3, 50])
    def test_bytes_missing(self, file, size):
        file.seal(body=file.body[:-size])
        file.refused("integers: expected .* bytes, the file has")

    def test_bytes_left_over(self, file):
        file.seal(body=file.body + b"\x00")
        file.refused("1 bytes are left over after the integers")

    def test_no_body(self, file):
        file.seal(body=b"")
        file.refused("scales of 'fc1.cores.0': expected 2 bytes, the file has 0 left")

    def test_integers_outside_the_grid(self, tmp_path):
        file = Compact(tmp_path / "ternary.ckd", grid=TERNARY)
        file.seal(body=file.body[:-1] + b"\xff")
        file.refused("a byte above 242 stands for no five digits")

    def test_packed_integers_called_coded(self, file):
        file.seal(start=b"CKD\x82")
        file.refused("entropy-coded integers")

    def test_scale_of_an_input_that_is_none(self, tmp_path):
        file = Compact(tmp_path / "inputs.ckd", activations=True)
        at = file.split.scales - 3 * 3
        file.seal(body=file.body[:at] + b"\x00\x7c" + file.body[at + 2 :])
        file.refused(r"'fc1.input_quant': expected scales above zero and finite, got inf")


@pytest.mark.slow
def test_random_changes_are_refused_in_words_or_give_another_network(tmp_path):
    """400 files with a few bytes of the header or of the body changed: no other error, and no hanging."""
    choose = random.Random(0)
    file = Compact(tmp_path / "model.ckd", packed_modules=True)
    plain, loaded = header.decompress(file.head), 0
    for number in range(400):
        head, body = bytearray(plain), bytearray(file.body)
        changed = body if number % 4 == 0 else head
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(changed))
            changed[place : place + choose.choice([0, 1, 1, 1, 3])] = choose.randbytes(
                choose.choice([0, 1, 1, 1, 2])
            )
        file.seal(head=header.compress(bytes(head)), body=bytes(body))
        try:
            artifact.load(file.path)
            loaded += 1
        except ArtifactError as refusal:
            assert str(refusal).startswith(str(file.path))  # noqa: PT017
    assert 20 < loaded < 200


@pytest.fixture
def folder(tmp_path):
    artifact.folder.write(stored_mlp(activations=True), tmp_path)
    return tmp_path


@pytest.fixture
def rewrite(folder):
    """Change tensors and structure as somebody would who also renews the digest."""

    def rewrite(change):
        weights, structure = folder / "model.safetensors", folder / "structure.json"
        described, tensors = json.loads(structure.read_text()), load_file(weights)
        change(described, tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, weights)
        described["sha256"] = digest(weights.read_bytes(), described)
        structure.write_text(json.dumps(described))

    return rewrite


CORE = "fc1.cores.0"
HOSTILE_FOLDERS = {
    "shape of other size": (lambda d, t: d["tensors"][CORE].update(shape=[1, 1, 1, 1]), "take 1 bytes, got"),
    "absurd shape": (lambda d, t: d["tensors"][CORE].update(shape=[2**40, 2**40]), "bytes, got"),
    "negative shape": (lambda d, t: d["tensors"][CORE].update(shape=[-1, 4]), "whole numbers from 0"),
    "shape of another type": (lambda d, t: d["tensors"][CORE].update(shape="big"), "whole numbers from 0"),
    "shape with the same size": (
        lambda d, t: d["tensors"][CORE].update(shape=d["tensors"][CORE]["shape"][::-1]),
        "size mismatch for fc1.cores.0"),
    "bits that do not exist": (lambda d, t: d["tensors"][CORE].update(bits=5), "bits: got 5, expected 2, 3, 4, 8"),
    "other bits": (lambda d, t: d["tensors"][CORE].update(bits=8), "bytes, got"),
    "grid that does not exist": (lambda d, t: d["tensors"][CORE].update(grid="round"), "grid: got"),
    "granularity of nobody": (lambda d, t: d["tensors"][CORE].update(granularity=["all"]), "granularity: got"),
    "key missing": (lambda d, t: d["tensors"][CORE].pop("grid"), "expected bits, grid, granularity and shape"),
    "description of nothing": (
        lambda d, t: d["tensors"].update(fc9=d["tensors"][CORE]), "Missing key: fc9"),
    "tensors that are no mapping": (lambda d, t: d.update(tensors=[1]), "tensors: expected a dict, got list"),
    "inputs that are no list": (lambda d, t: d.update(activations={}), "activations: expected a list, got dict"),
    "input of no layer": (lambda d, t: d.update(activations=["fc9"]), "Missing key: fc9:input_scale"),
    "input left undescribed": (lambda d, t: d.update(activations=[]), "Unexpected key: fc1:input_scale"),
    "packed in another type": (lambda d, t: t.update({CORE: t[CORE].float()}), "expected torch.uint8, got torch.fl"),
    "scale in another type": (
        lambda d, t: t.update({f"{CORE}:scale": t[f"{CORE}:scale"].float()}), "expected torch.float16"),
    "scales of another number": (
        lambda d, t: t.update({f"{CORE}:scale": torch.ones(3).half()}), "has 1 scales, got a scale tensor of shape"),
    "scale that is no number": (
        lambda d, t: t[f"{CORE}:scale"].fill_(torch.nan), "scales above zero and finite, got nan"),
    "zero point outside": (lambda d, t: t[f"{CORE}:zero_point"].fill_(99), "zero points within -4..3"),
    "tensor missing": (lambda d, t: t.pop("fc1.bias"), "Missing key: fc1.bias"),
    "packed tensor missing": (lambda d, t: t.pop(CORE), "Missing key: fc1.cores.0"),
    "scale missing": (lambda d, t: t.pop(f"{CORE}:scale"), "Missing key: fc1.cores.0:scale"),
    "tensor too many": (lambda d, t: t.update(extra=torch.ones(2)), "Unexpected key: extra"),
    "path as a name": (lambda d, t: t.update({"../../x": torch.ones(2)}), "Unexpected key: ../../x"),
    "vector of another size": (lambda d, t: t.update({"fc1.bias": torch.ones(3).half()}), "size mismatch for fc1.bias"),
    "deep nesting": (lambda d, t: d["architecture"]["kwargs"].update(hidden=_nested(40)), "nested deeper than 32"),
    "absurd width": (
        lambda d, t: d["architecture"]["kwargs"].update(hidden=[10**6, 10**6]), "is out of proportion"),
    "negative rank": (lambda d, t: d["modules"]["fc1"].update(ranks=[-1]), "negative|rank"),
    "module nowhere": (lambda d, t: d["modules"].update({"../fc1": d["modules"]["fc1"]}), "no module '../fc1'"),
    "function as a module": (
        lambda d, t: d["modules"]["fc1"].update({"class": "compresskd.models.build.build"}), "expected a subclass of"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_FOLDERS)
def test_hostile_folder(folder, rewrite, case):
    change, words = HOSTILE_FOLDERS[case]
    rewrite(change)
    started = time.perf_counter()
    with pytest.raises(ArtifactError, match=words):
        artifact.load(folder)
    assert time.perf_counter() - started < 20


class TestFolderFiles:
    def test_a_link_in_place_of_a_file(self, folder, tmp_path):
        (folder / "model.safetensors").rename(tmp_path / "elsewhere")
        (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match=r"model\.safetensors is a link"):
            artifact.load(folder)

    def test_a_folder_in_place_of_a_file(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()
        with pytest.raises(ArtifactError, match=r"model\.safetensors is no file"):
            artifact.load(folder)

    def test_a_pickle_in_place_of_the_weights(self, folder, tmp_path):
        mark = tmp_path / "mark"
        weights, structure = folder / "model.safetensors", folder / "structure.json"
        torch.save({"x": _Bomb(str(mark))}, weights)
        described = json.loads(structure.read_text())
        described["sha256"] = digest(weights.read_bytes(), described)
        structure.write_text(json.dumps(described))
        with pytest.raises(ArtifactError, match=r"header|Header"):
            artifact.load(folder)
        assert not mark.exists()

    def test_a_name_twice(self, folder):
        structure = folder / "structure.json"
        structure.write_text(structure.read_text().replace('"bits":3', '"bits":4,"bits":3', 1))
        with pytest.raises(ArtifactError, match=r"is damaged: a name is there twice among \['bits', 'bits'"):
            artifact.load(folder)


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


class _Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_sparse_file_of_many_gigabytes_is_refused_from_its_beginning(tmp_path):
    artifact.write_compact(stored_mlp(), tmp_path / "m.ckd")
    os.truncate(tmp_path / "m.ckd", 2**36)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"68,719,476,736 bytes, its header tells of at most"):
        artifact.load(tmp_path / "m.ckd")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()

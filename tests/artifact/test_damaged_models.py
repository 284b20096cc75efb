"""Damaged model files by a seeded generator: each is refused in words, or the very model is loaded."""

import hashlib
import json
import random
import shutil

import msgpack
import pytest
import torch
from hostile import (
    BYTES_CHANGES,
    LARGE,
    SENTINEL,
    VALUES,
    WATCH,
    change_kind,
    change_plain,
    count,
    watched,
    write_json,
)
from safetensors.torch import load_file, save_file
from stored_models import content, factorized, make, mlp, shake

from compresskd import artifact
from compresskd.artifact import ArtifactError, header
from compresskd.artifact.folder import digest
from compresskd.artifact.varint import read_varint, varint
from compresskd.quant.activation import calibrate
from compresskd.quant.prepare import QuantSpec, prepare


def quantized(model, example, **options):
    spec = QuantSpec(bits=3, grid="affine", core_grid="affine", initial_scale="absmax", **options)
    prepare(model, spec)
    if options.get("activation_bits"):
        calibrate(model, [example])
    return model.eval()


MODELS = {
    "float": lambda: shake(mlp()).eval(),
    "trains": lambda: factorized(mlp()).eval(),
    "quantized": lambda: quantized(
        factorized(mlp()), torch.rand(4, 1, 8, 8), other_bits=16, activation_bits=8
    ),
    "convolutions": lambda: quantized(factorized(make("lenet5"), 3), None),
    "norms": lambda: shake(make("resnet20")).eval(),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """By name: the folder with all forms of a model, and what it loads as."""
    found = {}
    for name, build in MODELS.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("originals") / name
        folder.mkdir()
        stored = content(build(), input_shape=[1, 8, 8])
        artifact.folder.write(stored, folder)
        artifact.write_compact(stored, folder / "model.ckd")
        artifact.write_compact(stored, folder / "packed.ckd", coded=False)
        found[name] = (
            folder,
            {form: artifact.load(folder / form) for form in (".", "model.ckd", "packed.ckd")},
        )
    return found


def seal(path, data):
    path.write_bytes(data + hashlib.blake2b(data, digest_size=8).digest())


def renew(folder, described=None):
    """The digest of a folder, as somebody renews it who changed the files on purpose."""
    described = json.loads((folder / "structure.json").read_bytes()) if described is None else described
    if isinstance(described, dict):
        described["sha256"] = digest((folder / "model.safetensors").read_bytes(), described)
    return described


def change_compact(choose, path, other):
    """Damage a compact file; whether its checksum was renewed."""
    data, how = path.read_bytes(), choose.randrange(4)
    if how == 0:
        return change_kind(choose, path) == "link"
    change = BYTES_CHANGES[choose.choice(list(BYTES_CHANGES))]
    if how == 1:
        path.write_bytes(change(choose, data, other.read_bytes()))
        return path.read_bytes() == other.read_bytes()
    size, start = read_varint(data, 4, "header")
    if how == 2:  # the body, and the checksum renewed
        seal(path, data[: start + size] + change(choose, data[start + size : -8], other.read_bytes()))
        return True
    fields = msgpack.unpackb(header.decompress(data[start : start + size]))
    fields[2] = fields[2] if isinstance(fields[2], list) else [fields[2]]
    trains, fields[2] = fields[2][0], fields[2][1:]
    fields, _ = change_plain(choose, fields, [*VALUES, *LARGE])
    if isinstance(fields, list) and len(fields) > 2 and isinstance(fields[2], list):
        fields[2] = [change(choose, trains, trains) if choose.random() < 0.3 else trains, *fields[2]]
    try:
        head = header.compress(msgpack.packb(fields))
    except (OverflowError, ValueError):  # no such number in msgpack
        head = b""
    seal(path, data[:4] + varint(len(head)) + head + data[start + size : -8])
    return True


def change_folder(choose, folder, other):
    """Damage a folder; whether its digest was renewed."""
    weights, structure = folder / "model.safetensors", folder / "structure.json"
    how, path = choose.randrange(5), choose.choice([weights, structure])
    change = BYTES_CHANGES[choose.choice(list(BYTES_CHANGES))]
    if how == 0:
        change_kind(choose, path)
        return False
    if how == 1:
        path.write_bytes(change(choose, path.read_bytes(), (other / path.name).read_bytes()))
        return False
    described = json.loads(structure.read_text())
    if how == 2:
        described, _ = change_plain(choose, described, [*VALUES, *LARGE], keep=("sha256",))
    elif how == 3:
        weights.write_bytes(change(choose, weights.read_bytes(), (other / weights.name).read_bytes()))
    else:
        change_tensors(choose, weights)
    write_json(choose, structure, renew(folder, described))
    return True


def change_tensors(choose, path):
    tensors = load_file(path)
    name, second = choose.choice(list(tensors)), choose.choice(list(tensors))
    value, how = tensors[name], choose.randrange(8)
    if how == 0 and value.is_floating_point() and value.numel():
        value.view(-1)[choose.randrange(value.numel())] = choose.choice([torch.nan, torch.inf, -torch.inf])
    elif how == 1:
        tensors[name], tensors[second] = tensors[second], value
    elif how == 2:
        tensors[name] = value.to(
            choose.choice([torch.float64, torch.int64, torch.uint8, torch.bfloat16, torch.bool])
        )
    elif how == 3:
        tensors[name] = value.reshape(-1)
    elif how == 4:
        tensors.pop(name)
    elif how == 5:
        tensors["extra"] = torch.ones(choose.choice([0, 1, 10_000]))
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    if how >= 6:  # what the header says of offsets, shapes and types
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        said, _ = change_plain(choose, json.loads(data[8 : 8 + size]), [*VALUES, *LARGE, "F64", "BF16", "U8"])
        head = json.dumps(said).encode()
        size = len(head) if choose.random() < 0.8 else choose.choice([0, 2**40, 2**63 - 1])
        path.write_bytes(size.to_bytes(8, "little") + head + data[8 + int.from_bytes(data[:8], "little") :])


def judge(tried, originals, tmp_path, monkeypatch):
    (tmp_path / f"{SENTINEL}.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names, loaded = list(originals), 0
    for number in range(tried):
        choose = random.Random(number)
        name, form = choose.choice(names), choose.choice([".", "model.ckd", "packed.ckd"])
        folder, models = originals[name]
        other = originals[choose.choice([n for n in names if n != name])][0]
        shutil.copytree(folder, tmp_path / "case")
        path = tmp_path / "case" / form
        change = change_folder if form == "." else change_compact
        renewed = change(choose, path, other if form == "." else other / form)
        with watched():
            try:
                model = artifact.load(path)
            except ArtifactError as refusal:
                assert str(refusal).startswith(str(tmp_path / "case")), number  # noqa: PT017
                assert len(str(refusal)) < 2000, number  # noqa: PT017
                model = None
        if model is not None:
            loaded += 1
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters()), number
            if not renewed:
                assert artifact.fingerprint(model) == artifact.fingerprint(models[form]), number
        shutil.rmtree(tmp_path / "case")
    assert not (tmp_path / "executed").exists()
    print(f"{tried} damaged files: {loaded} loaded; {WATCH}")  # noqa: T201 - shown by -s
    return loaded


@pytest.mark.slow
def test_damaged_models(originals, tmp_path, monkeypatch):
    tried = count(150, 1000)
    assert judge(tried, originals, tmp_path, monkeypatch) < tried / 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_no_numbers_is_neither_written_nor_read(tmp_path, value):
    model = mlp()
    with torch.no_grad():
        model.fc1.weight[0, 0] = value
    with pytest.raises(ArtifactError, match="holds NaN or infinite values"):
        artifact.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    stored = content(model)
    artifact.write_compact(stored, tmp_path / "model.ckd")
    artifact.folder.write(stored, tmp_path)
    for path in (tmp_path, tmp_path / "model.ckd"):
        with pytest.raises(ArtifactError, match="holds NaN or infinite values"):
            artifact.load(path)


LARGE_HEADERS = {
    "wide": lambda f: f[1].update(hidden=[1] * 900_000),
    "nested": lambda f: f[1].update(hidden=[[[[]]]] * 200_000),
    "a train of many cores": lambda f: f.__setitem__(2, varint(4) + varint(200_000) + b"\x01" * 599_999),
    "many names": lambda f: f[1].update({str(number): 1 for number in range(100_000)}),
    "a long name": lambda f: f.__setitem__(0, "models." + "a." * 400_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE_HEADERS)
def test_a_header_of_a_megabyte_is_refused_soon(originals, tmp_path, case):
    data = (originals["float"][0] / "model.ckd").read_bytes()
    size, start = read_varint(data, 4, "header")
    fields = msgpack.unpackb(header.decompress(data[start : start + size]))
    fields += [b""] * (3 - len(fields))
    LARGE_HEADERS[case](fields)
    head = header.compress(msgpack.packb(fields))
    seal(tmp_path / "model.ckd", data[:4] + varint(len(head)) + head + data[start + size : -8])
    with watched(), pytest.raises(ArtifactError):
        artifact.load(tmp_path / "model.ckd")

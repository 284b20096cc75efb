import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from compresskd.models.mlp import MLP
from compresskd.models.resnet import ResNet
from compresskd.models.weights import load_weights

SMALL = {"hidden": [4], "num_classes": 3, "input_shape": [5]}


def _model(seed, **options):
    torch.manual_seed(seed)
    return MLP(**{**SMALL, **options})


def _resnet(seed):
    torch.manual_seed(seed)
    return ResNet(depth=8, width_multiplier=0.25, num_classes=3, input_shape=[1, 8, 8])


def _assert_loads(path, source, target):
    load_weights(target, path)
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_safetensors_round_trip(tmp_path):
    source = _resnet(0)
    safetensors.torch.save_model(source, tmp_path / "w.safetensors")
    _assert_loads(tmp_path / "w.safetensors", source, _resnet(1))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_torch_file_with_wrappers_and_prefixes(tmp_path, zipped, prefix, wrapper):
    source = _model(0)
    state = OrderedDict((prefix + name, tensor) for name, tensor in source.state_dict().items())
    content = {"epoch": 3, "best": 0.9, wrapper: state} if wrapper else state
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    _assert_loads(str(tmp_path / "w.pt"), source, _model(1))


def test_prefixes_are_kept_where_the_model_has_them(tmp_path):
    source, target = (
        nn.Sequential(OrderedDict(module=_model(0))),
        nn.Sequential(OrderedDict(module=_model(1))),
    )
    torch.save(source.state_dict(), tmp_path / "w.pt")
    _assert_loads(tmp_path / "w.pt", source, target)


def test_a_compiled_model_is_loaded_into(tmp_path):
    source, target = _model(0), _model(1)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(torch.compile(target, backend="eager"), tmp_path / "w.pt")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_dtype_and_device_of_the_model_are_kept(tmp_path):
    source = _model(0)
    torch.save({n: t.half() for n, t in source.state_dict().items()}, tmp_path / "w.pt")
    target = _model(1)
    load_weights(target, tmp_path / "w.pt")
    assert target.fc1.weight.dtype == torch.float32
    torch.testing.assert_close(target.fc1.weight, source.fc1.weight.half().float(), rtol=0, atol=0)


def test_a_model_on_the_meta_device_becomes_real(tmp_path):
    source = _resnet(0).eval()
    torch.save(
        {n: t.double() if t.is_floating_point() else t for n, t in source.state_dict().items()},
        tmp_path / "w",
    )
    with torch.device("meta"):
        target = _resnet(1).eval()
    load_weights(target, tmp_path / "w")
    x_BCHW = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(target(x_BCHW), source(x_BCHW), rtol=0, atol=0)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("left_out", ["head.weight", "table.weight", None])
def test_a_tied_tensor_may_be_in_the_file_once(tmp_path, device, left_out):
    state = {name: value for name, value in Tied().state_dict().items() if name != left_out}
    torch.save(state, tmp_path / "model.pt")
    with torch.device(device):
        model = Tied()
    load_weights(model, tmp_path / "model.pt")
    assert torch.equal(model.head.weight, next(iter(state.values())))
    assert model.head.weight is model.table.weight


def test_two_tensors_for_one_that_is_tied_are_refused(tmp_path):
    torch.save({"head.weight": torch.ones(5, 3), "table.weight": torch.zeros(5, 3)}, tmp_path / "model.pt")
    model = Tied()
    before = model.table.weight.detach().clone()
    with pytest.raises(ValueError, match=r"table\.weight and head\.weight differ"):
        load_weights(model, tmp_path / "model.pt")
    assert torch.equal(model.table.weight, before)


def test_step_counters_of_batch_norm_may_be_missing(tmp_path):
    source = _resnet(0)
    state = {n: t for n, t in source.state_dict().items() if "num_batches_tracked" not in n}
    torch.save(state, tmp_path / "w.pt")
    _assert_loads(tmp_path / "w.pt", source, _resnet(1))


def test_what_does_not_fit_is_named_and_counted_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(_model(0, hidden=[4, 4, 4, 4], num_classes=7).state_dict(), path)
    target = _model(1, hidden=[4, 4])
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit MLP") as caught:
        load_weights(target, path)
    assert str(path) in str(caught.value)
    assert "4 unexpected (fc4.weight, fc4.bias, fc5.weight, and 1 more)" in str(caught.value)
    assert (
        "2 of another shape (fc3.weight: [4, 4] in the file, [3, 4] in the model, fc3.bias: [4] in the file"
        in str(caught.value)
    )
    assert "missing" not in str(caught.value)
    assert "Choose the architecture" in str(caught.value)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)

    torch.save(_model(0, hidden=[]).state_dict(), path)
    with pytest.raises(ValueError, match=r"4 missing \(fc2.weight, fc2.bias, fc3.weight, and 1 more\)"):
        load_weights(target, path)


def test_integers_where_floats_are_expected_are_refused(tmp_path):
    torch.save({n: t.to(torch.int8) for n, t in _model(0).state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"4 of another kind .*torch.int8 in the file, torch.float32 in the model"
    ):
        load_weights(_model(1), tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_in_the_model_are_refused(tmp_path, value):
    state = {n: t.double() for n, t in _model(0).state_dict().items()}
    state["fc2.bias"][1] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinite values \(fc2.bias\)"):
        load_weights(_model(1), tmp_path / "w.pt")


def test_absent_files_and_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt: no such file; expected weights"):
        load_weights(_model(0), tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="expected a file of weights, found a directory"):
        load_weights(_model(0), tmp_path)


class _Hostile:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def _bytes_of(content, zipped=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _self_reference():
    content = {}
    content["model"] = content
    return content


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "text": b"this is no file of weights\n" * 20,
        "zeros": bytes(5000),
        "bad zip": b"PK\x03\x04" + bytes(range(256)),
        "truncated zip": _bytes_of(MLP(**SMALL).state_dict())[:700],
        "truncated legacy": _bytes_of(MLP(**SMALL).state_dict(), zipped=False)[:500],
        "hostile": _bytes_of({"state_dict": _Hostile()}),
        "hostile legacy": _bytes_of({"state_dict": _Hostile()}, zipped=False),
        "hostile pickle": pickle.dumps(_Hostile()),
        "numbers": _bytes_of({"epoch": 3, "loss": 0.5}),
        "list": _bytes_of([torch.ones(2)]),
        "nothing": _bytes_of({}),
        "itself": _bytes_of(_self_reference()),
        "names": _bytes_of({1: torch.ones(2)}),
        "sparse": _bytes_of({"fc1.weight": torch.eye(3).to_sparse()}),
        "meta": _bytes_of(MLP(**SMALL).to("meta").state_dict()),
    }.values(),
    ids=lambda content: str(len(content)),
)
def test_damaged_hostile_and_foreign_files_are_refused_and_never_executed(
    tmp_path, monkeypatch, content, suffix
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.(pt|safetensors)"):
        load_weights(_model(0), path)
    assert not Path("executed").exists()


def test_refusals_say_what_is_wrong(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(_bytes_of({"state_dict": _Hostile()}))
    with pytest.raises(
        ValueError, match=r"Python objects beside tensors \(posix.system\), which are never exec"
    ):
        load_weights(_model(0), path)
    path.write_bytes(_bytes_of({"epoch": 3, "net": {"a": torch.ones(1)}}))
    with pytest.raises(
        ValueError, match=r"under one of state_dict, .* found 'epoch' \(int\), 'net' \(dict\)"
    ):
        load_weights(_model(0), path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="not a torch file of weights, or a damaged one"):
        load_weights(_model(0), path)
    path = tmp_path / "w.safetensors"
    path.write_bytes(_bytes_of({}))
    with pytest.raises(ValueError, match=r"not a safetensors file, .*must have another suffix, such as \.pt"):
        load_weights(_model(0), path)

"""One call loads any form, and brings nothing of training with it; files of earlier versions are read."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stored_models import ABOUT, assert_same, content, factorized, mlp, shake

import compresskd
from compresskd import artifact
from compresskd.artifact import ArtifactError, compact
from compresskd.artifact.folder import digest
from compresskd.artifact.header import _defaults
from compresskd.models.build import spec_of
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare


@pytest.fixture
def run_directory(tmp_path):
    """A run directory as a finished run leaves it."""
    model = factorized(shake(mlp()), 4)
    prepare(model, QuantSpec(bits=4, initial_scale="absmax"))
    artifact.save(model.eval(), tmp_path / "checkpoints" / "quantize")
    artifact.write_final(tmp_path / "checkpoints" / "quantize", tmp_path, {**ABOUT, "input_shape": [1, 8, 8]})
    record = {
        "strategy": "compress",
        "config": {},
        "overrides": [],
        "seed": 0,
        "status": "finished",
        "final": "quantize",
        "stages": [
            {
                "name": "quantize",
                "checkpoint": "checkpoints/quantize",
                "packages": [],
                "metrics": {"validation_accuracy": 0.5, "test_accuracy": 0.5},
                "size": {"num_parameters": 9, "folder_bytes": 9},
                "latency_ms": {"batch_1": 1.0, "batch_32": 1.0},
            }
        ],
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    return tmp_path


def test_every_form_gives_the_same_network(run_directory):
    places = [".", "model", "model/model.ckd", "checkpoints/quantize"]
    models = [compresskd.load(run_directory / place) for place in places]
    states = [model.state_dict() for model in models]
    for model, state in zip(models[1:], states[1:], strict=True):
        assert {**models[0].spec["kwargs"], **model.spec["kwargs"]} == model.spec[
            "kwargs"
        ]  # and the defaults
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert compresskd.load(str(run_directory)).fc1.cores[0].requires_grad


def test_a_run_of_an_earlier_version_has_no_model_folder(run_directory):
    for path in (run_directory / "model").iterdir():
        path.unlink()
    (run_directory / "model").rmdir()
    assert_same(compresskd.load(run_directory), compresskd.load(run_directory / "checkpoints" / "quantize"))


def test_an_unfinished_run_has_no_model_yet(run_directory):
    record = run_directory / "record.json"
    record.write_text(record.read_text().replace("finished", "running"))
    for path in (run_directory / "model").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match=r"is not finished \(it is running\): it has no final model yet"):
        compresskd.load(run_directory)


def test_loading_brings_no_training_code(run_directory):
    code = (
        "import sys, compresskd\n"
        "assert 'torch' not in sys.modules\n"
        f"model = compresskd.load({str(run_directory / 'model' / 'model.ckd')!r})\n"
        "names = {name.split('.')[1] for name in sys.modules if name.startswith('compresskd.')}\n"
        "assert not names & {'training', 'stages', 'strategy', 'objective', 'kd', 'data', 'config', 'cli'}, names\n"
        "assert not {'hydra', 'omegaconf', 'datasets', 'sklearn', 'sympy', 'torch._dynamo'} & set(sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(Path(compresskd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_of_format_1_is_read(tmp_path):
    """As versions before quantization wrote it: values as they are, and no word on how to read them."""
    model = shake(mlp())
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    described = {"format": 1, "compresskd": "0.1.0", "architecture": spec_of(model), "modules": {}}
    described["sha256"] = digest((tmp_path / "model.safetensors").read_bytes(), described)
    (tmp_path / "structure.json").write_text(json.dumps(described))
    assert_same(model, artifact.load(tmp_path))


# of MLP(hidden=[4], 2 classes, 1x2x2 pixels), fc1 at 4 bits half-integer per tensor, fc2 at 2 bits per channel,
# vectors in half precision: as written by the first version of format 2
GOLDEN = bytes.fromhex(
    "434b4402319b8623b826b2206b6342d5c6c474846132830523b05e5b969e9f037626b0f6e63c82ad429bb4282f7f7165"
    "6af124264100552d5535ab3600b8003600b000b900b40039b0f4398ec1064b9f2ddbe143f6d552369cfb"
)
GOLDEN_OUTPUT = [[-0.6107619404792786, 1.3366563320159912]]


def test_golden_file_is_read_as_ever():
    model = artifact.build(compact.decode(GOLDEN))
    x = torch.tensor([[[[1.0, -2.0], [0.5, 4.0]]]])
    with torch.inference_mode():
        assert model(x).tolist() == GOLDEN_OUTPUT


def test_golden_file_is_written_as_ever():
    assert artifact.encode(compact.decode(GOLDEN))[0] == GOLDEN


def test_defaults_of_shipped_architectures_are_part_of_the_format():
    """Files leave out what equals them: a default that changes would change what old files say."""
    defaults = {
        "lenet.LeNet5": {"width_multiplier": 1.0, "padding": 0, "bias": True},
        "mlp.MLP": {"hidden": [256, 256], "activation": "relu", "bias": True},
        "resnet.ResNet": {"depth": 20, "width_multiplier": 1.0},
        "resnet_x4.ResNetX4": {"depth": 8},
        "tt_mlp.TTMLP": {"activation": "relu"},
        "vit.VisionTransformer": {
            "patch_size": 4, "width": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4.0, "dropout": 0.0,
        },
        "wide_resnet.WideResNet": {"depth": 16, "width": 2, "dropout": 0.0},
    }  # fmt: skip
    for path, known in defaults.items():
        found = _defaults(f"compresskd.models.{path}", trust=())
        assert {key: found.get(key) for key in known} == known, path


def test_float16_vectors_are_read_in_the_type_of_the_constructor():
    stored = content(mlp())
    halves = {k: v.half() if v.ndim == 1 else v for k, v in stored.tensors.items()}
    again = artifact.build(replace(stored, tensors=halves))
    assert again.fc1.bias.dtype == torch.float32
    assert torch.equal(again.fc1.bias, halves["fc1.bias"].float())


def test_a_loaded_network_trains_and_is_saved_again(run_directory, tmp_path):
    model = compresskd.load(run_directory)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.fc1.cores[0].detach().clone()
    model.train()(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.fc1.cores[0], before)
    artifact.save(model, tmp_path / "again")
    assert not any(isinstance(v, QuantizedTensor) for v in artifact.read(tmp_path / "again").tensors.values())
    assert_same(model.eval(), artifact.load(tmp_path / "again"))

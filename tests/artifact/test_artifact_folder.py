"""A model's folder: it comes back the same, or is refused with what is wrong; it runs nothing."""

import json
import shutil
import sys

import pytest
import torch
from named_models import NAMES
from safetensors.torch import load_file, save_file
from stored_models import assert_same, inputs_for, make, mlp, shake
from torch import nn

from compresskd import artifact, tt
from compresskd.artifact import ArtifactError
from compresskd.artifact.folder import digest
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.run import RunDirectoryError


@pytest.fixture
def folder(tmp_path):
    artifact.save(mlp(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rewrite(folder):
    """Change the structure as somebody would who also renews the digest."""

    def rewrite(change):
        path = folder / "structure.json"
        described = json.loads(path.read_text())
        change(described)
        described["sha256"] = digest((folder / "model.safetensors").read_bytes(), described)
        path.write_text(json.dumps(described))

    return rewrite


class TestRoundTrip:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_every_architecture(self, name, tmp_path):
        model = shake(make(name))
        size = artifact.save(model, tmp_path / "model")
        assert size == sum(p.stat().st_size for p in (tmp_path / "model").iterdir())
        assert size == artifact.bytes_of(model) == artifact.folder_bytes(tmp_path / "model")
        again = artifact.load(tmp_path / "model")
        assert_same(model, again)
        assert artifact.fingerprint(again) == artifact.fingerprint(model)
        x = inputs_for(name)
        with torch.inference_mode():
            assert torch.equal(model.eval()(x), again(x))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "method"),
        [
            ("mlp", "tensor_train"), ("mlp", "tucker"), ("lenet5", "tensor_train"), ("lenet5", "cp"),
            ("resnet8x4", "svd"), ("resnet20", "tensor_train"), ("vit_tiny", "svd"),
        ],
    )  # fmt: skip
    def test_factorized(self, name, method, tmp_path):
        model = make(name)

        def factorize(path, module):
            if not isinstance(module, nn.Linear | nn.Conv2d) or path.startswith("layer1"):
                return None
            new = tt.factorize(module, rank=3, method=method)
            return None if isinstance(new, tt.Skipped) else new

        assert surgery.replace(model, factorize)
        artifact.save(shake(model), tmp_path / "model")
        again = artifact.load(tmp_path / "model")
        assert_same(model, again)
        assert surgery.structure(again) == surgery.structure(model)
        x = inputs_for(name)
        with torch.inference_mode():
            assert torch.equal(model.eval()(x), again(x))

    def test_types_are_kept(self, tmp_path):
        model = shake(mlp()).double()
        artifact.save(model, tmp_path / "model")
        assert_same(model, artifact.load(tmp_path / "model"))

    def test_channels_last_and_training_mode_do_not_matter(self, tmp_path):
        model = shake(make("resnet20")).to(memory_format=torch.channels_last).train()
        artifact.save(model, tmp_path / "model")
        again = artifact.load(tmp_path / "model")
        assert_same(model, again)
        assert all(p.is_contiguous() and p.requires_grad for p in again.parameters())

    def test_saving_again_replaces_the_folder_as_a_whole(self, folder):
        model = shake(mlp())
        (folder / "stranger").touch()
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(RunDirectoryError, match="holds stranger, which is no part of a model"):
            artifact.save(model, folder)  # whose files these are nobody knows
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        (folder / "stranger").unlink()
        artifact.save(model, folder)
        assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "structure.json"]
        assert_same(model, artifact.load(folder))
        assert [p.name for p in folder.parent.iterdir()] == ["model"]

    def test_a_model_that_cannot_say_how_it_was_built_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="does not say how it was built"):
            artifact.save(nn.Linear(2, 2), tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_fingerprint_sees_names_types_shapes_and_values(self):
        layers = [nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3).double(), nn.Linear(3, 2)]
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.zero_()
            layers[1].bias[0] = 1.0
        prints = [artifact.fingerprint(layer) for layer in [*layers, nn.Sequential(layers[0])]]
        assert len(set(prints)) == 5
        assert prints[0] == artifact.fingerprint(layers[0])


class TestDamaged:
    def test_every_truncation_and_many_flipped_bits(self, folder):
        for name in ("model.safetensors", "structure.json"):
            path = folder / name
            content = path.read_bytes()
            step = max(1, len(content) // 40)
            for position in range(0, len(content), step):
                path.write_bytes(content[:position])
                with pytest.raises(ArtifactError, match=str(folder)):
                    artifact.load(folder)
                flipped = bytearray(content)
                flipped[position] ^= 4
                path.write_bytes(flipped)
                with pytest.raises(ArtifactError, match=str(folder)):
                    artifact.load(folder)
            path.write_bytes(content)
        assert_same(mlp(), artifact.load(folder))

    def test_a_value_changed_in_the_structure(self, folder):
        path = folder / "structure.json"
        path.write_text(path.read_text().replace('"relu"', '"gelu"').replace("[32,32]", "[32,33]"))
        with pytest.raises(ArtifactError, match="is damaged: the SHA-256"):
            artifact.load(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "structure.json"])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=rf"{name} cannot be read: No such file"):
            artifact.load(folder)

    def test_weights_of_another_model(self, folder, tmp_path):
        artifact.save(shake(mlp()), tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", folder)
        with pytest.raises(ArtifactError, match="is damaged: the SHA-256"):
            artifact.load(folder)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "is damaged"),
            ("\x00", "is damaged"),
            ("[]", "is not a model's structure: expected the keys"),
            ('{"format": 1}', "is not a model's structure: expected the keys"),
            ("[" * 100_000, "is damaged"),
        ],
    )
    def test_foreign_structure(self, folder, text, words):
        (folder / "structure.json").write_text(text)
        with pytest.raises(ArtifactError, match=words):
            artifact.load(folder)

    def test_not_text(self, folder):
        (folder / "structure.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ArtifactError, match="is damaged"):
            artifact.load(folder)


class TestTampered:
    """With a digest that fits."""

    def test_format_of_another_version(self, folder, rewrite):
        rewrite(lambda d: d.update(format=99))
        with pytest.raises(ArtifactError, match="has format 99; this version reads formats 1 to 3"):
            artifact.load(folder)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda d: d["architecture"]["kwargs"].update(hidden=[32, 33]), "size mismatch for fc2"),
            (lambda d: d["architecture"]["kwargs"].update(depth=3), "depth: unknown option"),
            (lambda d: d["architecture"]["kwargs"].pop("num_classes"), "num_classes: is missing"),
            (lambda d: d["architecture"].update(kwargs=[1]), "architecture: expected a target and its kwargs"),
            (lambda d: d["architecture"].pop("target"), "'' is not part of compresskd"),
            (lambda d: d.update(architecture="MLP"), "architecture: expected a target and its kwargs"),
            (lambda d: d["architecture"].update(target=7), "'7' is not part of compresskd"),
            (lambda d: d["architecture"].update(target="compresskd.models.mlp.Nothing"), "has no 'Nothing'"),
            (lambda d: d["modules"].update(fc9={"class": "compresskd.tt.TTLinear"}), "no module 'fc9'"),
            (lambda d: d.update(modules={"fc1": {}}), "modules: expected a structure with its class"),
            (lambda d: d.update(modules=["fc1"]), "modules: expected a structure with its class"),
            (
                lambda d: d["modules"].update(fc1={"class": "compresskd.models.mlp.MLP"}),
                "cannot be built from a structure",
            ),
        ],
    )  # fmt: skip
    def test_structure_that_does_not_fit(self, folder, rewrite, change, words):
        rewrite(change)
        with pytest.raises(ArtifactError, match=words):
            artifact.load(folder)

    def test_tensors_that_do_not_fit(self, folder, rewrite):
        tensors = load_file(folder / "model.safetensors")
        bias = tensors.pop("fc1.bias")
        save_file({**tensors, "fc0.bias": bias}, folder / "model.safetensors")
        rewrite(lambda d: None)
        with pytest.raises(ArtifactError, match=r"(?s)Missing key.*fc1\.bias.*Unexpected key.*fc0\.bias"):
            artifact.load(folder)

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "subprocess.run",
            "torch.hub.load",
            "torch.nn.Linear",
            "builtins.eval",
            "compresskd.engine.environment.subprocess.run",
            "compresskd.run.files.shutil.rmtree",
            "compresskd.models.build.build",
            "compresskd.targets.paths.resolve",
            "compresskd.cli.main",
            "compresskd.__main__.main",
            "compresskd.models.mlp.nn.Linear",
            "compresskdx.Model",
        ],
    )
    @pytest.mark.parametrize("place", ["architecture", "nested", "module"])
    def test_runs_nothing_of_others(self, folder, rewrite, target, place):
        def change(described):
            if place == "architecture":
                described["architecture"]["target"] = target
            elif place == "nested":
                described["architecture"]["kwargs"]["hidden"] = [{"_target_": target, "_args_": ["x"]}]
            else:
                described["modules"]["fc1"] = {"class": target}

        rewrite(change)
        before = set(sys.modules)
        with pytest.raises(ArtifactError, match=r"is not part of compresskd|got the|is no (torch|path)"):
            artifact.load(folder)
        assert "compresskd.__main__" not in sys.modules
        assert {name for name in set(sys.modules) - before if not name.startswith("compresskd")} == set()


class TestTrust:
    @pytest.fixture
    def own(self, tmp_path, monkeypatch):
        """A package of the user's that imports os, and a module file that leaves a mark where it is imported."""
        package = tmp_path / "their_models"
        package.mkdir()
        (package / "__init__.py").write_text(
            "import os\nfrom torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self, *, num_classes):\n        super().__init__(4, num_classes)\n"
            "def net(*, num_classes):\n    return nn.Linear(4, num_classes)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        yield "their_models"
        for name in [n for n in sys.modules if n.startswith("their_models")]:
            del sys.modules[name]

    @pytest.mark.parametrize("name", ["Net", "net"])
    def test_a_named_package_is_built_and_no_other(self, own, name, tmp_path):
        model = build(f"{own}.{name}", {"num_classes": 3}, seed=0)
        artifact.save(model, tmp_path / "model")
        assert artifact.packages(model) == ["their_models"]
        assert_same(model, artifact.load(tmp_path / "model", trust=["their_models"]))
        del sys.modules["their_models"]
        with pytest.raises(
            ArtifactError, match=r"write --trust their_models, in Python trust=\('their_models',\)"
        ):
            artifact.load(tmp_path / "model")
        assert "their_models" not in sys.modules

    def test_what_it_merely_imports_is_not_trusted_with_it(self, own, folder, rewrite):
        rewrite(lambda d: d["architecture"].update(target=f"{own}.os.system", kwargs={"command": "true"}))
        with pytest.raises(ArtifactError, match=r"got the builtin function"):
            artifact.load(folder, trust=[own])

    def test_packages_name_parts_too(self, own, tmp_path):
        kwargs = {"_args_": [{"_target_": f"{own}.Net", "num_classes": 4}]}
        model = build("torch.nn.Sequential", kwargs, seed=0)
        assert artifact.packages(model) == ["their_models", "torch"]
        artifact.save(model, tmp_path / "model")
        assert_same(model, artifact.load(tmp_path / "model", trust=artifact.packages(model)))

from importlib.util import find_spec

import pytest
import torch
from refusals import name_of, says
from small_architectures import import_timm

import compresskd
from compresskd import artifact
from compresskd.models.build import build, spec_of
from compresskd.models.from_teacher import FromTeacher

if find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)
timm = import_timm()
TIMM = "compresskd.models.timm.timm"


def made(name, size=32, **options):
    return build(
        TIMM, {"name": name, "num_classes": 5, "input_shape": [1, size, size], **options}, seed=0
    ).eval()


def test_a_constructor_that_reads_its_own_numbers_gets_memory(tmp_path, monkeypatch):
    """As in many versions of timm: rates of drop path."""
    model = made("resnet10t")
    artifact.save(model, tmp_path / "model")
    create, rates = timm.create_model, []

    def create_by_rates(*given, **named):
        rates.append(torch.linspace(0, 1, 3)[1].item())
        return create(*given, **named)

    monkeypatch.setattr(timm, "create_model", create_by_rates)
    loaded = artifact.load(tmp_path / "model")
    assert set(rates) == {0.5}
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet", "mixer_s32_224"])
def test_answers_images_of_any_size_and_is_rebuilt(name, tmp_path):
    model, images = made(name), torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    artifact.save(model, tmp_path / "model")
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(artifact.load(tmp_path / "model")(images), expected, rtol=0, atol=0)
    assert expected.shape == (2, 5)
    assert spec_of(model)["kwargs"]["name"] == name
    assert artifact.fingerprint(made(name)) == artifact.fingerprint(model)


def test_a_student_of_some_blocks():
    teacher, of = made("test_vit"), FromTeacher(layers=[1])
    student = of.student(teacher, 1)
    of.inherit(student, teacher)
    assert len(student.blocks) == 1
    torch.testing.assert_close(student.blocks[0].state_dict(), teacher.blocks[1].state_dict())


REFUSED = [
    ({"name": "resnet1O"}, says("name", "resnet18")),
    ({"name": "hf-hub:timm/resnet18"}, says("name", "hf-hub")),
    ({"options": {"pretrained": True}}, says("options.pretrained")),
    ({"options": {"checkpoint_path": "x.pth"}}, says("options.checkpoint_path")),
    ({"options": {"depht": 2}}, says("options", "depht")),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[name_of(message) for _, message in REFUSED])
def test_refused_with_the_option_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        made(**{"name": "test_vit", **change})


@pytest.mark.slow
def test_a_run_by_the_command_line(run_cli, work):
    typed = [
        "teacher=timm",
        "teacher.name=test_vit",
        "data=synthetic",
        "data.input_shape=[1,32,32]",
        "data.num_train=96",
        "data.num_test=32",
    ]
    short = [
        "train.max_steps=2",
        "teacher_fit.train.max_steps=2",
        "train.batch_size=16",
        "measure.latency=false",
        "quant.core_start=nearest",
    ]
    kept = [
        "strategy=distill_then_compress",
        "student=from_teacher",
        "student.layers=[0]",
        "rank=2",
        "bits=4",
    ]
    ended = run_cli(*typed, *short, *kept, "epochs=1", "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    assert run_cli("evaluate", "run").status == 0


def test_what_a_convolution_has_beside_weight_and_bias_is_rounded_with_them(caplog):
    model = made("test_nfnet", size=64)
    for name, parameter in model.named_parameters():
        if name.endswith("gain") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with caplog.at_level("WARNING", logger="compresskd"):
        compresskd.quantize(model, images, bits=4, core_start="nearest")
    assert "left as it was" not in caplog.text

"""Models of folders in a configuration: when they are trained, what a student takes of them, what is refused."""

import pytest
import torch
from refusals import says

from compresskd import artifact
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.recorded import build_recorded
from compresskd.config.schema import register
from compresskd.listeners.console import Reporter
from compresskd.models.build import build as build_model
from compresskd.models.from_teacher import FromTeacher
from compresskd.models.hub_folder import hub_folder
from compresskd.models.huggingface import HUGGING_FACE
from compresskd.run import open_run

DATA = [
    "data=synthetic",
    "data.num_train=48",
    "data.num_test=16",
    "measure.latency=false",
    "rank=2",
    "epochs=2",
]
VIT = {
    "model_type": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A classifier of the images of `data=synthetic`, and its encoder without the head."""
    register()
    (job,) = build_jobs(compose_jobs([*DATA, "strategy=train"]).jobs)
    options = {"config": VIT, "num_classes": job.data.num_classes, "input_shape": list(job.data.input_shape)}
    model = build_model(HUGGING_FACE, options, seed=3)
    root = tmp_path_factory.mktemp("hub")
    model.save_pretrained(root / "classifier")
    model.vit.save_pretrained(root / "encoder")
    return root


def built(*overrides):
    register()
    (experiment,) = build_jobs(compose_jobs([*DATA, *overrides]).jobs)
    return experiment


def of_teacher(folder, *overrides):
    return built(
        "strategy=distill", "teacher=huggingface", f"teacher.id={folder}", "student=from_teacher", *overrides
    )


@pytest.mark.slow
def test_a_teacher_whose_head_fits_is_used_as_it_is(folders):
    teacher = of_teacher(folders / "classifier").teacher
    model, origin = teacher.obtain(Reporter())
    key = hub_folder(str(folders / "classifier")).fingerprint
    assert origin == {"key": key, "source": "weights", "weights": str(folders / "classifier")}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_it_is_trained_further_where_epochs_are_typed_or_the_head_is_fresh(folders):
    typed = of_teacher(folders / "classifier", "teacher_fit.epochs=3")
    encoder = of_teacher(folders / "encoder")
    for experiment, epochs in ((typed, 3), (encoder, 2)):  # as many as `epochs`, where nothing is typed
        assert experiment.teacher.weights is None
        own = experiment.teacher.train.__self__
        assert own.recipe.epochs == epochs
        torch.testing.assert_close(own.student().vit.layernorm.weight, torch.ones(16), rtol=0, atol=0)
    begun = typed.teacher.train.__self__.student()
    assert artifact.fingerprint(begun) == artifact.fingerprint(
        of_teacher(folders / "classifier").teacher.build()
    )


@pytest.mark.slow
def test_the_key_of_a_teacher_holds_what_is_in_its_folder(folders, tmp_path):
    def key(folder):
        return of_teacher(folder, "teacher_fit.epochs=3").teacher.key

    first = key(folders / "classifier")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders / "classifier" / name).read_bytes())
    assert key(tmp_path) == first  # wherever it is
    model = of_teacher(folders / "classifier").teacher.build()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(tmp_path)
    assert key(tmp_path) != first


@pytest.mark.slow
def test_a_student_of_the_teacher_starts_from_it_and_is_resumed(folders, tmp_path):
    experiment = of_teacher(folders / "classifier", "student.layers=[0,2]", "epochs=0", "strategy=train")
    run = open_run(tmp_path / "run")
    try:
        record = experiment.run(run, Reporter())
    finally:
        run.close()
    teacher, of = experiment.teacher.build(), FromTeacher(layers=[0, 2])
    expected = of.student(teacher, 0)
    of.inherit(expected, teacher)
    assert record.stage(record.final)["fingerprint"] == artifact.fingerprint(expected)
    assert record.teacher["source"] == "weights"
    assert record.config["student"]["layers"] == [0, 2]
    again = build_recorded(record.config)
    assert again.teacher.key == experiment.teacher.key
    assert artifact.fingerprint(again.student()) == artifact.fingerprint(experiment.student())
    loaded = artifact.load(tmp_path / "run")
    assert len(loaded.vit.layers if hasattr(loaded.vit, "layers") else loaded.vit.encoder.layer) == 2


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["teacher.id=/no/such"], "teacher.id", ["/no/such"]),
        (["student.layers=[0,7]"], "student.layers", ["0 to 2"]),
        (["student.width=10"], "student.width", ["8"]),
        (["student=huggingface", "student.config={model_type: vitt}"], "student.config.model_type", ["vit"]),
        (["student=huggingface"], "student.id", ["null"]),
        (["teacher.config={num_labels: 3}"], "teacher.config.num_labels", ["data"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_under_the_key_that_users_write(overrides, key, words, folders):
    with pytest.raises(ConfigError) as raised:
        of_teacher(folders / "classifier", *overrides)
    assert any(says(key, *words).search(f"{fault.key}: {fault.text}") for fault in raised.value.faults)


def test_a_student_of_a_teacher_of_our_own(tmp_path):
    vit = [
        "teacher=vit_tiny",
        "teacher.width=16",
        "teacher.depth=3",
        "teacher.num_heads=2",
        "teacher.patch_size=4",
    ]
    experiment = built("strategy=distill", *vit, "student=from_teacher", "student.layers=[1]")
    assert len(experiment.student().blocks) == 1

import json

import pytest
import torch
from refusals import name_of, says
from torch import nn

from compresskd import artifact
from compresskd.models.build import build, spec_of
from compresskd.models.from_teacher import FromTeacher, stacks_of
from compresskd.models.huggingface import HUGGING_FACE

VIT = {"patch_size": 4, "width": 16, "depth": 4, "num_heads": 2, "num_classes": 3, "input_shape": [1, 8, 8]}
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 16}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
QWEN = {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2}


def of_transformers(config, task="causal_lm"):
    options = {"config": config, "task": task, "num_classes": 30, "vocabulary_size": 30}
    return build(HUGGING_FACE, options, seed=0).eval()


TEACHERS = {
    "vit": lambda: build("compresskd.models.vit.VisionTransformer", VIT, seed=0).eval(),
    "bert": lambda: of_transformers({"model_type": "bert", **SMALL}, "masked_lm"),
    "gpt2": lambda: of_transformers(GPT2),
    "qwen2": lambda: of_transformers(QWEN),
    "t5": lambda: of_transformers(T5, "seq2seq_lm"),
    "mlp": lambda: build("compresskd.models.mlp.MLP", {"hidden": [8], "num_classes": 3, "input_shape": [4]}, seed=0),
}  # fmt: skip
IDS = torch.arange(12).reshape(2, 6)
STACKS = {
    "vit": "blocks", "bert": "bert.encoder.layer", "gpt2": "transformer.h", "qwen2": "model.layers",
    "t5": "encoder.block",
}  # fmt: skip


def inputs_of(name):
    if name == "vit":
        return {"x": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    return {"input_ids": IDS, **({"decoder_input_ids": IDS} if name == "t5" else {})}


def without_blocks(teacher, stack, kept):
    """The teacher with these blocks alone, by hand."""
    blocks = list(teacher.get_submodule(stack))
    chosen = [blocks[number] for number in kept]
    is_sequential = isinstance(teacher.get_submodule(stack), nn.Sequential)
    teacher.set_submodule(stack, nn.Sequential(*chosen) if is_sequential else nn.ModuleList(chosen))
    return teacher


@pytest.mark.parametrize("name", STACKS)
def test_a_student_of_some_blocks_computes_what_these_blocks_of_the_teacher_do(name, tmp_path):
    teacher, of = TEACHERS[name](), FromTeacher(layers=[0, 2])
    student = of.student(teacher, 1).eval()
    of.inherit(student, teacher)
    assert (STACKS[name], 2) in list(stacks_of(student))
    with torch.no_grad():
        said = student(**inputs_of(name))
        expected = without_blocks(teacher, STACKS[name], [0, 2])(**inputs_of(name))
    said, expected = (getattr(output, "logits", output) for output in (said, expected))
    torch.testing.assert_close(said, expected, rtol=0, atol=0)

    artifact.save(student, tmp_path / "student")  # which is rebuilt without the teacher
    with torch.no_grad():
        loaded = artifact.load(tmp_path / "student")(**inputs_of(name))
    torch.testing.assert_close(getattr(loaded, "logits", loaded), said, rtol=0, atol=0)
    assert json.loads(json.dumps(spec_of(student))) == spec_of(student)


def test_all_of_the_teacher_is_its_copy():
    teacher, of = TEACHERS["bert"](), FromTeacher()
    student = of.student(teacher, 1)
    assert artifact.fingerprint(student) != artifact.fingerprint(teacher)
    of.inherit(student, teacher)
    assert artifact.fingerprint(student) == artifact.fingerprint(teacher)
    assert spec_of(student) == spec_of(teacher)


def test_a_student_may_start_at_random():
    assert FromTeacher(layers=[1]).inherits
    assert not FromTeacher(layers=[1], init="random").inherits
    assert not FromTeacher(width=16).inherits


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2", "t5"])
def test_a_narrower_student_has_heads_of_the_same_size(name):
    teacher = TEACHERS[name]()
    student = FromTeacher(width=16, layers=[0, 1]).student(teacher, 0).eval()
    config, full = student.config, teacher.config
    assert (config.hidden_size, config.num_attention_heads) == (16, full.num_attention_heads // 2)
    assert student.get_input_embeddings().weight.shape == (30, 16)
    with torch.no_grad():
        assert student(**inputs_of(name)).logits.shape == (2, 6, 30)


def test_the_stack_may_be_named():
    student = FromTeacher(stack="decoder.block", layers=[1]).student(TEACHERS["t5"](), 0)
    assert (len(student.encoder.block), len(student.decoder.block)) == (3, 1)


REFUSED = [
    ("bert", {"layers": [0, 4]}, says("layers", "bert.encoder.layer", "3")),
    ("bert", {"layers": [2, 0]}, says("layers", "rising")),
    ("bert", {"layers": []}, says("layers", "one or more")),
    ("bert", {"stack": "bert.encodr.layer", "layers": [0]}, says("stack", "bert.encoder.layer")),
    ("bert", {"stack": "bert.encoder.layer"}, says("layers", "null")),
    ("mlp", {"layers": [0]}, says("layers", "MLP", "no stack")),
    ("mlp", {"stack": "fc1", "layers": [0]}, says("stack", "none")),
    ("vit", {"width": 8}, says("width", "VisionTransformer")),
    ("bert", {"width": 20}, says("width", "multiple of 8", "32")),
    ("bert", {"width": 64}, says("width", "below 32")),
    ("bert", {"width": 16, "init": "teacher"}, says("init", "random")),
    ("bert", {"init": "zeros"}, says("init", "'zeros'")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"), REFUSED, ids=[name_of(message) for *_, message in REFUSED]
)
def test_refused_with_what_there_is(name, options, message):
    with pytest.raises(ValueError, match=message):
        FromTeacher(**options).architecture(TEACHERS[name]())


def test_a_model_file_may_name_blocks_that_there_are_alone():
    options = {"model": {"_target_": "compresskd.models.vit.VisionTransformer", **VIT}, "stack": "blocks"}
    shortened = "compresskd.models.from_teacher.shortened"
    assert len(build(shortened, {**options, "layers": [3]}, seed=0).blocks) == 1
    for wrong in ({"layers": [4]}, {"layers": [0], "stack": "head"}):
        with pytest.raises(ValueError, match="no blocks"):
            build(shortened, {**options, **wrong}, seed=0)

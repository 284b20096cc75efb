"""How a run comes by its teacher, and a student that is made of it."""

import gc

import pytest
from refusals import says

from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.recorded import build_recorded

DATA = ("data=synthetic", "data.num_train=16", "data.num_test=8", "data.input_shape=[1,16,16]", "rank=2")
VIT = (
    "teacher=vit_tiny",
    "teacher.width=16",
    "teacher.depth=3",
    "teacher.num_heads=2",
    "student=from_teacher",
)
MLP = ("teacher=mlp", "teacher.hidden=[8]", "student=mlp", "student.hidden=[4]", "strategy=distill")


def built(*overrides):
    return build_jobs(compose_jobs([*DATA, *overrides]).jobs)[0]


@pytest.mark.parametrize(("options", "inherits"), [((), True), (("student.init=random",), False)])
def test_a_student_is_made_of_the_teacher_which_its_strategy_does_not_need(options, inherits):
    experiment = built(*VIT, "strategy=train", "student.layers=[0,2]", *options)
    assert experiment.teacher is not None
    assert (experiment.inherit is not None) == inherits
    student = experiment.student()
    assert len(student.get_submodule("blocks")) == 2
    if experiment.inherit is not None:
        teacher = experiment.teacher.build()
        experiment.inherit(student, teacher)
        kept, its = student.state_dict(), teacher.state_dict()
        assert kept["head.weight"].equal(its["head.weight"])


@pytest.mark.parametrize(
    ("options", "inherits"),
    [
        (("strategy=distill_to_compressed",), False),
        (("strategy=distill_to_compressed", "student.init=teacher"), True),
        (("strategy=distill_then_compress",), True),
        (("strategy=compress",), True),
        (("strategy=distill_to_compressed", "strategy.stages.born.init=decomposed"), True),
    ],
)
def test_between_fresh_factors_a_students_norms_and_biases_are_fresh_unless_it_says_otherwise(
    options, inherits
):
    # with a teacher's norms between random weights, texts lose what tells them apart from block to block
    assert (built(*VIT, "rank=2", *options).inherit is not None) == inherits


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("student.layers=[0,3]", says("student.layers", "blocks")),
        ("student.weights=w.pt", says("student.weights", "null")),
    ],
)
def test_a_student_that_cannot_be_made_of_the_teacher_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        built(*VIT, "strategy=train", option)


def test_a_teacher_is_trained_as_long_as_the_student_unless_it_says_otherwise():
    lengths = [
        built(*MLP, "epochs=3", *more).config["teacher_fit"]["epochs"]
        for more in ((), ("teacher_fit.epochs=5",))
    ]
    assert lengths == [3, 5]


def test_options_of_training_that_came_later_leave_the_teachers_key_while_they_are_off():
    later = ("gradient_accumulation", "gradient_checkpointing", "dropout", "max_steps", "validate_every")
    key = built(*MLP).teacher.key
    assert built(*MLP, *(f"~teacher_fit.train.{name}" for name in later)).teacher.key == key
    assert built(*MLP, "teacher_fit.train.gradient_accumulation=2").teacher.key != key
    assert built(*MLP, "teacher_fit.train.max_steps=1").teacher.key != key


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)  # of pandas, in datasets
def test_a_record_of_texts_is_built_beside_a_teacher_that_takes_a_shape_and_that_nothing_asks_for(tmp_path):
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"{n} word,{n % 2}\n" for n in range(40)))
    bert = "{model_type: bert, num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 1, intermediate_size: 8}"
    typed = ("data=text", f"data.path={texts}", "data.tokenizer=bytes", "data.max_length=8", "task=text_classification",
             "teacher=mlp", "student=huggingface", f"student.config={bert}", "strategy=train")  # fmt: skip
    (made,) = build_jobs(compose_jobs(typed).jobs)
    assert made.config["teacher"]["input_shape"] == []
    assert build_recorded(made.config, typed, trust=()).teacher is None
    gc.collect()  # what pandas left open is told here, where it is no fault, and not in a later test

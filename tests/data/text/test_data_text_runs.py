"""Every kind of data through the command line: trained, compressed and judged, or refused before that."""

import json

import pytest
from refusals import fault, refused

pytestmark = pytest.mark.slow

SHORT = ("epochs=1", "teacher_fit.epochs=1", "rank=4", "train.batch_size=16")


def models(name, vocabulary=True):
    extra = ["+{}.vocabulary=300"] if vocabulary else []
    chosen = ["{}=custom", f"{{}}._target_=text_models.{name}", "+{}.width=16", *extra]
    return [line.format(role) for role in ("teacher", "student") for line in chosen]


def cases(tmp_path, labelled, tagged, tokenizer):
    (tmp_path / "it.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(300)))
    blocks = [f"data.path={tmp_path / 'it.txt'}", "data.tokenizer=characters", "data.block_size=16"]
    return {
        "text_classification": [
            f"data.path={labelled}", "data.text_column=sentence", "data.tokenizer=bytes", "data.class_weights=balanced",
            *models("TextClassifier"),
        ],
        "token_classification": [
            f"data.path={tagged}", "data.tags_column=upos", f"data.tokenizer={tokenizer}", *models("Tagger")
        ],
        "causal_lm": ["data=text_blocks", *blocks, *models("NextToken", vocabulary=False)],
        "regression": [],
        "multi_label": ["data.num_samples=200"],
    }  # fmt: skip


MONITORS = {
    "text_classification": "test_accuracy",
    "token_classification": "test_accuracy",
    "causal_lm": "test_bits_per_byte",
    "regression": "test_r2",
    "multi_label": "test_macro_f1",
}


EXAMPLES = {"causal_lm": {"input_ids": [16]}, "regression": [10]}


@pytest.mark.parametrize("task", MONITORS)
def test_a_task_with_its_own_data_is_trained_compressed_and_scored_again(
    task, run_cli, work, tmp_path, labelled, tagged, tokenizer
):
    lines = cases(tmp_path, labelled, tagged, tokenizer)[task]
    ended = run_cli(f"task={task}", *lines, *SHORT, "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    record = json.loads((work / "run" / "record.json").read_text())
    assert record["task"]["name"] == task
    assert MONITORS[task] in record["stages"][-1]["metrics"]
    assert task not in EXAMPLES or record["data"]["example_shape"] == EXAMPLES[task]
    again = run_cli("evaluate", "run")
    assert again.status == 0, again.err + again.out


def test_mixup_is_refused_for_samples_without_a_single_class(run_cli, labelled):
    text = ["data.tokenizer=bytes", f"data.path={labelled}", "data.text_column=sentence"]
    for lines in (["task=text_classification", *text, *models("TextClassifier")], ["task=regression"]):
        ended = run_cli(*lines, "train.mixup=0.2", "teacher_fit.train.mixup=0.4")
        refused(ended, fault("train.mixup", "0.2", "null"), fault("teacher_fit.train.mixup", "0.4", "null"))


def test_augmentation_is_no_option_of_texts_and_tables(run_cli):
    refused(run_cli("task=regression", "data/augmentation=crop"), "data/augmentation")
    refused(run_cli("task=regression", "data.augmentation=null"), "data.augmentation")


def test_data_of_another_kind_are_refused(run_cli, tmp_path):
    (tmp_path / "it.csv").write_text("a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(50)))
    table = ["data=table", f"data.path={tmp_path / 'it.csv'}"]
    refused(run_cli("task=regression", *table), fault("data.target", "null", "a, b"))
    refused(run_cli("task=regression", *table, "data.target=c"), fault("data.target", "'c'"))
    refused(run_cli(*table, "data.target=b"), fault("data.target", "whole numbers", "task=regression"))
    refused(run_cli("task=causal_lm", *table, "data.target=b"), fault("data.target"))
    refused(run_cli("task=regression", "data=digits"), fault("task", "regression", "numbers"))
    refused(run_cli("task=text_classification", "data.path=/no/such"), fault("data.path", "/no/such"))


def test_tokens_that_are_asked_another_thing_are_refused(run_cli, tmp_path, tagged, tokenizer):
    tags = [f"data.path={tagged}", "data.tags_column=upos", f"data.tokenizer={tokenizer}", *models("Tagger")]
    refused(run_cli("task=causal_lm", "data=tokens", *tags), fault("task", "causal_lm", "one class a token"))
    docs = ["data=python_docs", *models("NextToken", vocabulary=False)]
    refused(run_cli("task=masked_lm", *docs), fault("task", "masked_lm", "tokens of a text"))
    refused(
        run_cli("task=token_classification", *docs), fault("task", "token_classification", "tokens of a text")
    )


def test_models_that_know_fewer_tokens_or_shorter_texts_are_refused(run_cli, labelled):
    text = [
        "task=text_classification",
        "data.tokenizer=bytes",
        f"data.path={labelled}",
        "data.text_column=sentence",
    ]
    few = [line.replace("300", "115") for line in models("TextClassifier")]  # "x" is 120
    refused(
        run_cli(*text, *few),
        fault("teacher", "TextClassifier", "up to 120"),
        fault("student", "index out of"),
    )


def test_models_of_one_shape_are_refused_for_texts(run_cli):
    ended = run_cli("task=causal_lm", "data.tokenizer=bytes", "teacher=mlp", "student=mlp_small")
    refused(ended, fault("teacher", "huggingface"), fault("student", "custom"))


def test_packed_outputs_serve_a_language_model_and_are_refused_where_they_cannot(run_cli, work, tmp_path):
    (tmp_path / "it.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(300)))
    lines = [
        "task=causal_lm", "data=text_blocks", f"data.path={tmp_path / 'it.txt'}", "data.tokenizer=characters",
        "data.block_size=16", *models("NextToken", vocabulary=False), *SHORT, "train.teacher_outputs=4",
    ]  # fmt: skip
    ended = run_cli(*lines, "strategy=distill", "kd.temperature=2", "epochs=2", "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    record = json.loads((work / "run" / "record.json").read_text())
    counted = record["stages"][-1]["teacher_outputs"]["original"]
    assert (counted["num_computed"], counted["num_served"]) == (record["data"]["num_train"], pytest.approx(
        2 * record["data"]["num_train"], abs=2))  # fmt: skip
    refused(run_cli(*lines, "strategy=distill", "kd=dkd"), fault("kd.objective.terms.dkd", "DKD"))
    refused(run_cli(*lines, "strategy=train"), fault("train.teacher_outputs", "4", "null"))
    # where nothing is trained no option of a training matters
    ended = run_cli("plan", *lines, "strategy=compress", "rank=2")
    assert ended.status == 0, ended.err
    refused(
        run_cli(*lines[:-1], "strategy=distill", "train.teacher_outputs=500"), fault("train.teacher_outputs")
    )
    more = run_cli(*lines, "strategy=distill", "teacher_fit.train.teacher_outputs=4")
    refused(more, fault("teacher_fit.train.teacher_outputs", "null"))

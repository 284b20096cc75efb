"""Texts and sentences without labels, beside those that have some."""

import json

import pytest
import torch
from refusals import fault, refused
from text_sets import sentences

from compresskd.data.text.texts import text
from compresskd.data.text.tokens import tokens
from compresskd.tasks import IGNORED, UNLABELLED

CUTS = {"test_fraction": 0.2, "validation_fraction": 0.2, "split_seed": 0}
SET = {"max_length": None, "group_by_length": True, "skip_bad": False, **CUTS}
MODELS = [
    line.format(role)
    for role in ("teacher", "student")
    for line in ("{}=custom", "{}._target_=text_models.TextClassifier", "+{}.vocabulary=300")
]


@pytest.fixture
def more(folder):
    return folder(train={"sentence": sentences(33, 300)[0]})


def test_texts_need_the_text_column_alone(labelled, more):
    options = {
        "name": "text", "text_column": "sentence", "pair_column": None, "label_column": "label", "weight_column": None,
        "tokenizer": "characters", "asks": None, "class_weights": "balanced", "path": labelled, **SET,
    }  # fmt: skip
    data = text(**options, unlabelled_path=more)
    assert len(data.unlabelled) == 33
    assert data.unlabelled.weights is None
    (batch,) = data.unlabelled.batches(33)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert (batch.targets == UNLABELLED).all()
    with pytest.raises(ValueError, match="text_column"):
        text(**{**options, "text_column": "other"}, unlabelled_path=more)


def test_untagged_words_are_asked_at_their_first_piece(tagged, folder, tokenizer):
    words = [line.split() for line in sentences(9, 500)[0]]
    options = {
        "name": "tokens", "tokens_column": "tokens", "tags_column": "upos", "tokenizer": tokenizer,
        "path": tagged, **SET,
    }  # fmt: skip
    data = tokens(**options, unlabelled_path=folder(train={"tokens": words}))
    (batch,) = data.unlabelled.batches(9)
    assert set(batch.targets.unique().tolist()) == {IGNORED, UNLABELLED}
    asked = (batch.targets == UNLABELLED).sum(1)
    assert torch.equal(asked, torch.tensor([len(row) for row in words]))


@pytest.mark.slow
def test_a_distillation_sees_them_and_says_so(run_cli, work, labelled, more):
    lines = [
        "task=text_classification", f"data.path={labelled}", "data.text_column=sentence", "data.tokenizer=characters",
        f"data.unlabelled_path={more}", "train.batch_size=8", "epochs=2", *MODELS,
    ]  # fmt: skip
    ended = run_cli(*lines, "strategy=distill", "train.gradient_accumulation=2", "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    record = json.loads((work / "run" / "record.json").read_text())
    assert record["data"]["unlabelled"]["num"] == 33
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = -(-(-(-record["data"]["num_train"] // 8) + 4) // 2)  # one of 33 is left out
    assert rows[0]["updates"] in (updates, updates + 1)
    assert set(rows[0]["terms"]) == {"cross_entropy", "soft_targets"}
    (of_teacher,) = (work / "outputs" / "teachers").rglob("record.json")
    assert "unlabelled" not in json.loads(of_teacher.read_text())["data"]
    assert run_cli("repeat", "run").status == 0
    refused(run_cli(*lines, "strategy=train"), fault("data.unlabelled_path", "null"))
    refused(run_cli(*lines, "strategy=distill", "kd=none"), fault("data.unlabelled_path", "null"))
    refused(run_cli(*lines, "strategy=compress"), fault("data.unlabelled_path", "null"))
    refused(run_cli(*lines, "strategy=distill", "kd=dkd"), fault("kd.objective.terms.dkd"))
    elsewhere = ["data.unlabelled_path=/no/such" if "unlabelled" in line else line for line in lines]
    refused(run_cli(*elsewhere, "strategy=distill"), fault("data.unlabelled_path", "/no/such"))

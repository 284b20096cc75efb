"""Vectors judged by a teacher's: metrics, terms, the encoder that pools, and a run from end to end."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from refusals import fault, refused
from scipy.stats import pearsonr, spearmanr

from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.kd.vectors import VectorCosine, VectorRelations
from compresskd.models.build import build
from compresskd.models.huggingface import from_config, huggingface
from compresskd.options import OptionError
from compresskd.tasks import Classification, Embedding, Judged, ModelOutputs

SMALL = {
    "model_type": "bert", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
WORDS = [f"w{number}" for number in range(50)]


def judged(ours, theirs):
    task = Embedding()
    loss = float(task.label_losses(ours, theirs).mean())
    return Judged(task.keep(ours, theirs), theirs, torch.empty(0), None, len(ours), loss)


def test_metrics_are_those_of_scipy_over_all_pairs():
    torch.manual_seed(0)
    theirs = torch.randn(20, 6)
    ours = theirs @ torch.randn(6, 6) + 0.1 * torch.randn(20, 6)
    rows, columns = np.triu_indices(20, 1)
    pairs = [(F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).numpy()[rows, columns] for x in (ours, theirs)]
    found = Embedding().metrics_of(judged(ours, theirs))
    assert found["cosine"] == pytest.approx(float(F.cosine_similarity(ours, theirs).mean()), abs=1e-6)
    assert found["pearson"] == pytest.approx(pearsonr(*pairs)[0], abs=1e-5)
    assert found["spearman"] == pytest.approx(spearmanr(*pairs)[0], abs=1e-5)


def test_a_turned_space_keeps_its_relations_and_few_samples_have_none():
    torch.manual_seed(0)
    theirs, turn = torch.randn(9, 5), torch.linalg.qr(torch.randn(5, 5)).Q
    found = Embedding().metrics_of(judged(theirs @ turn, theirs))
    assert (found["spearman"], found["pearson"]) == (pytest.approx(1), pytest.approx(1))
    assert found["cosine"] < 0.9
    assert Embedding().metrics_of(judged(theirs[:1], theirs[:1]))["spearman"] == 0


def test_terms_compare_directions_and_relations():
    torch.manual_seed(0)
    s, t = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    ours, theirs = ModelOutputs(s), ModelOutputs(t)
    targets = torch.full((5,), -1)
    cosine, relations = (term(ours, theirs, targets) for term in (VectorCosine(), VectorRelations()))
    (cosine + relations).backward()
    assert s.grad is not None
    s, cosine, relations = s.detach(), cosine.detach(), relations.detach()
    assert float(cosine) == pytest.approx(float(1 - F.cosine_similarity(s, t).mean()), abs=1e-6)
    a, b = (F.normalize(x, dim=1) for x in (s, t))
    apart = [(a[i] @ a[j] - b[i] @ b[j]) ** 2 for i in range(5) for j in range(5) if i != j]
    assert float(relations) == pytest.approx(float(torch.stack(apart).mean()), abs=1e-6)
    assert VectorRelations()(ModelOutputs(s[:1]), ModelOutputs(t[:1]), targets[:1]) == 0
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    assert float(VectorRelations()(ModelOutputs(t @ turn), theirs, targets)) == pytest.approx(0, abs=1e-10)


def test_vectors_take_terms_on_the_teachers_vectors_alone():
    terms = {"soft": SoftTargets(), "labels": CrossEntropy(), "cosine": VectorCosine()}
    assert [e.field for e in Objective(terms).faults(Embedding())] == ["terms.soft", "terms.labels"]
    assert [e.field for e in Objective(terms).faults(Classification())] == ["terms.cosine"]


def encoder(**options):
    return huggingface(config=SMALL, task="embedding", num_classes=0, **options).eval()


@pytest.mark.parametrize("normalize", [True, False])
def test_an_encoder_pools_over_the_mask(normalize):
    ids, mask = torch.randint(5, 60, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    for pooling in ("mean", "cls"):
        model = encoder(pooling=pooling, normalize=normalize)
        assert not any("pooler" in name for name, _ in model.named_parameters())
        states = type(model).__mro__[2].forward(model, ids, mask).last_hidden_state
        wanted = (
            torch.stack([states[0].mean(0), states[1, :4].mean(0)]) if pooling == "mean" else states[:, 0]
        )
        torch.testing.assert_close(model(ids, mask), F.normalize(wanted, dim=1) if normalize else wanted)
        again = build(model.spec["target"], model.spec["kwargs"], seed=0).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(ids, mask), model(ids, mask))


def test_only_an_encoder_pools():
    with pytest.raises(OptionError, match="pooling"):
        huggingface(config=SMALL, task="text_classification", num_classes=2, pooling="mean")
    assert from_config(**encoder().spec["kwargs"]).pooling == "mean"


@pytest.fixture
def folder(tmp_path):
    """An encoder with its tokenizer, as sentence-transformers lays it out."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    root = tmp_path / "encoder"
    torch.manual_seed(0)
    encoder().save_pretrained(root)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(root / "tokenizer.json"))
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
               for i, kind in enumerate(kinds)]  # fmt: skip
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return root


@pytest.fixture
def sentences(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(WORDS[int(k)] for k in torch.randint(50, (3 + row % 5,), generator=generator))
        for row in range(80)
    ]
    file = tmp_path / "it.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sentence": lines}), file)
    return file


def test_a_folder_says_how_it_pools_and_what_else_is_refused(folder):
    model = huggingface(id=str(folder), task="embedding", num_classes=0)
    assert (model.pooling, model.normalize, model.fresh_parameters) == ("mean", True, ())
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(OptionError, match="Dense"):
        huggingface(id=str(folder), task="embedding", num_classes=0)


@pytest.mark.slow
def test_an_encoder_is_compressed_judged_used_and_exported(run_cli, work, folder, sentences):
    lines = [
        "task=embedding", f"teacher.id={folder}", f"data.path={sentences}", "data.text_column=sentence", "rank=4",
        "epochs=2", "train.batch_size=16", "measure.latency=false",
    ]  # fmt: skip
    for strategy, more in (("compress", ["bits=4"]), ("compress_then_distill", ["student.layers=[0]"])):
        ended = run_cli(*lines, f"strategy={strategy}", *more, f"hydra.run.dir={strategy}")
        assert ended.status == 0, ended.err
        record = json.loads((work / strategy / "record.json").read_text())
        assert record["task"]["monitor"] == "cosine"
        assert record["teacher"]["metrics"]["test_cosine"] == pytest.approx(1, abs=1e-5)
        assert 0 < record["stages"][-1]["metrics"]["test_spearman"] < 1
        again = run_cli("evaluate", strategy)
        assert again.status == 0, again.out + again.err
    compared = run_cli("compare", "compress", "compress_then_distill")
    assert compared.status == 0, compared.err
    assert "cosine" in compared.out
    predicted = run_cli("predict", "compress", str(sentences), "--out", "vectors.jsonl")
    assert predicted.status == 0, predicted.err
    rows = [json.loads(line) for line in (work / "vectors.jsonl").read_text().splitlines()]
    vectors = torch.tensor([[row[str(k)] for k in range(32)] for row in rows])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(80))
    exported = run_cli("export", "compress", "--to", "huggingface", "--out", "hub")
    assert exported.status == 0, exported.err
    again = huggingface(id=str(work / "hub"), task="embedding", num_classes=0)
    assert (again.pooling, again.normalize) == ("mean", True)


@pytest.mark.slow
def test_what_has_no_teacher_or_no_vectors_is_refused(run_cli, folder, sentences):
    lines = ["task=embedding", f"data.path={sentences}", "data.text_column=sentence"]
    ready = [*lines, f"teacher.id={folder}"]
    refused(run_cli(*ready, "strategy=train"), "cross_entropy")
    refused(run_cli(*ready, "strategy=distill", "kd=soft_targets"), fault("kd.objective.terms.soft_targets"))
    refused(run_cli(*ready, f"data.unlabelled_path={sentences}"), fault("data.unlabelled_path", "null"))
    refused(run_cli(*ready, "train.label_smoothing=0.1"), fault("train.label_smoothing", "0.1", "0"))
    fresh = "{model_type: bert, num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 1, intermediate_size: 16}"
    untrained = [*lines, "data.tokenizer=characters", f"teacher.config={fresh}"]
    refused(run_cli(*untrained, "strategy=compress"), "teacher", "labels")

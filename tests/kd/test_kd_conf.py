"""Every file in conf/kd: it builds, binds, trains, and each of its numbers is read."""

from pathlib import Path

import pytest
import torch
from kd_nets import Attending, Net, step

from compresskd.kd.decoupled import DKD
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.kd.logits import JensenShannon, ReverseKL, SoftTargets
from compresskd.kd.objective import BoundObjective
from compresskd.kd.relations import AttentionRelations

KD_CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "kd").glob("*.yaml"))


# The configs


def build(path, **changes):
    import hydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("complement"):
        OmegaConf.register_new_resolver("complement", lambda x: 1 - x)
    config = OmegaConf.create({"kd": OmegaConf.load(path), "train": {"label_smoothing": 0.1}})
    for key, value in changes.items():
        config.kd[key] = value
    return hydra.utils.instantiate(config.kd.objective, _convert_="all")


# One other value for each number at the top of a config, by which each is shown to be read.
OTHER = {
    "alpha": 0.25,
    "temperature": 2.5,
    "standardize": True,
    "scale": 3.0,
    "target_weight": 0.5,
    "non_target_weight": 2.0,
    "gamma": 0.75,
    "beta": 0.75,
    "feature_weight": 7.0,
    "distance_weight": 3.0,
    "angle_weight": 3.0,
    "match": "same_name",
    "cosine_weight": 3.0,
    "relations_weight": 3.0,
    "block": 0,
    "heads": 2,
    "pairs": {"conv1": "conv1"},
}


@pytest.mark.parametrize("path", KD_CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_binds_and_trains(path, inputs, targets):
    objective = build(path)
    labels = objective.terms.get("cross_entropy")  # vectors have none
    assert path.stem == "vectors" if labels is None else labels.label_smoothing == 0.1
    attends = path.stem == "attention_relations"
    student, teacher = (Attending if attends else Net)(width=4), (Attending if attends else Net)(width=6)
    first = student.embed if attends else student.conv1
    bound = objective.bind(student, teacher if objective.needs_teacher else None, inputs[:2])
    assert isinstance(bound, BoundObjective)
    total, parts = step(bound, student, teacher, inputs, targets)
    assert set(parts) == set(objective.active)
    total.backward()
    assert torch.isfinite(first.weight.grad).all()
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("path", KD_CONFIGS, ids=lambda path: path.stem)
def test_every_number_at_the_top_of_a_config_is_read(path):
    from omegaconf import OmegaConf

    keys = [key for key in OmegaConf.load(path) if key != "objective"]
    base = build(path)
    for key in keys:
        if key == "include":
            other = build(path, include=["conv1"], match="same_name")
            assert other != build(path, match="same_name")
        else:
            value = (
                "last" if key == "match" and base.terms[path_term(base)].match == "same_name" else OTHER[key]
            )
            assert build(path, **{key: value}) != base, key


def path_term(objective):
    return next(name for name, term in objective.terms.items() if getattr(term, "kind", "") == "features")


def test_there_is_a_config_for_every_loss():
    assert [path.stem for path in KD_CONFIGS] == [
        "attention_relations",
        "attention_transfer",
        "bernoulli",
        "dist",
        "dkd",
        "fitnets",
        "hidden_states",
        "jensen_shannon",
        "logit_mse",
        "nkd",
        "none",
        "reverse_kl",
        "rkd",
        "similarity_preserving",
        "soft_targets",
        "squared_error",
        "vectors",
    ]


def test_defaults_are_those_of_the_papers():
    terms = {path.stem: build(path).terms for path in KD_CONFIGS}
    assert terms["soft_targets"]["soft_targets"] == SoftTargets(0.7, 4.0)
    assert terms["soft_targets"]["cross_entropy"].weight == pytest.approx(0.3)
    assert terms["dkd"]["dkd"] == DKD(0.5, 4.0, target_weight=1.0, non_target_weight=8.0)
    assert terms["rkd"]["rkd"] == RKD(1.0, 25.0, 50.0)
    assert terms["fitnets"]["hint"] == Hint(100.0)
    assert terms["hidden_states"]["hidden_states"] == Hint(1.0, match="layers")
    assert terms["reverse_kl"]["reverse_kl"] == ReverseKL(0.7, 1.0)
    assert terms["jensen_shannon"]["jensen_shannon"] == JensenShannon(0.7, 1.0, beta=0.5)
    assert terms["attention_relations"]["attention_relations"] == AttentionRelations(1.0, block=-1)
    assert terms["attention_transfer"]["attention_transfer"] == AttentionTransfer(1000.0)
    assert terms["similarity_preserving"]["similarity_preserving"] == SimilarityPreserving(3000.0)
    assert not build(next(path for path in KD_CONFIGS if path.stem == "none")).needs_teacher


@pytest.mark.parametrize(
    "path", [path for path in KD_CONFIGS if path.stem not in ("none", "vectors")], ids=lambda path: path.stem
)
def test_alpha_out_of_range_is_named_in_every_config(path):
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException, match=r"weight', 1\.2"):
        build(path, alpha=1.2)

"""References between keys: followed to where a value is written, and told where they lead nowhere."""

import pytest
from omegaconf import OmegaConf
from refusals import says

from compresskd.config.build import resolved
from compresskd.config.faults import ConfigError
from compresskd.config.origin import as_written, interpolation_faults, origin, references

CFG = OmegaConf.create(
    {
        "rank": 4,
        "kd": {"alpha": 0.5, "terms": {"soft": {"weight": "${kd.alpha}", "names": ["a", "${rank}"]}}},
        "stage": {"rank": "${rank}", "terms": "${kd.terms}", "twice": "${stage.rank}"},
        "mixed": "r${rank}_a${kd.alpha}",
        "outputs_dir": "out",
    }
)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("rank", "rank"),
        ("stage.rank", "rank"),
        ("stage.twice", "rank"),
        ("stage.terms.soft.weight", "kd.alpha"),
        ("stage.terms.soft.names[1]", "rank"),
        ("stage.terms.soft.names[0]", "kd.terms.soft.names[0]"),
        ("stage.terms.soft.unknown", "kd.terms.soft.unknown"),
        ("mixed", "mixed"),  # of two keys, neither is the origin
        ("nowhere.at.all", "nowhere.at.all"),
    ],
)
def test_origin(key, expected):
    assert origin(as_written(CFG), key) == expected


def test_origin_of_a_key_itself_follows_only_what_is_above():
    assert origin(as_written(CFG), "stage.rank", literal=True) == "stage.rank"
    assert origin(as_written(CFG), "stage.terms.soft.weight", literal=True) == "kd.terms.soft.weight"


def test_a_circle_of_references_ends():
    assert origin({"a": "${b}", "b": "${a}"}, "a") in ("a", "b")


def test_references():
    assert references(as_written(CFG)) == {"rank", "kd.alpha", "kd.terms", "stage.rank"}


def test_each_broken_reference_is_told_once_where_it_is_written():
    cfg = OmegaConf.create(
        {"rank": "${rnk}", "stage": {"rank": "${rank}"}, "a": {"b": "${kd.nope}"}, "kd": {"t": 1}}
    )
    first, second = sorted((str(fault) for fault in interpolation_faults(cfg)), reverse=True)
    assert says("rank", "${rnk}", "'rnk' not found").match(first)
    assert says("a.b", "${kd.nope}", "'kd.nope' not found").match(second)
    with pytest.raises(ConfigError, match="2 faults"):
        resolved(cfg)

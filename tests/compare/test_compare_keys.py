import pytest

from compresskd.compare.keys import ABSENT, UnknownKeyError, analyse, change, full_key
from compresskd.run.flat import canonical, flatten


def keys_of(configs, swept=()):
    flat = [flatten(config) for config in configs]
    seeds = [canonical(config.get("seed")) for config in configs]
    return analyse(flat[0], [change(flat[0], one) for one in flat], seeds, swept)


def test_flatten_and_canonical_values():
    flat = flatten(
        {"a": {"b": 4.0, "c": {"d": None}}, "e": [1, {"f": 2}], "g": {}, "h": True, "i": 0.1, "j": "x"}
    )
    assert flat == {
        "a.b": "4", "a.c.d": "null", "e": '[1, {"f": 2}]', "g": "{}", "h": "true", "i": "0.1", "j": "x",
    }  # fmt: skip
    assert canonical(4) == canonical(4.0)
    assert canonical(1) != canonical(True)
    assert canonical(1e300) == "1e+300"


@pytest.mark.slow
def test_deeply_nested_configs_do_not_overflow():
    config: dict = {}
    node = config
    for _ in range(50_000):
        node["a"] = {}
        node = node["a"]
    node["b"] = 1
    assert list(flatten(config).values()) == ["1"]


def test_only_what_adds_a_distinction_groups():
    configs = [
        {"strategy": s, "rank": r, "seed": seed, "stages": {"compress": {"rank": r}}, "lr": 0.1, "same": 1}
        for s in ("distill", "train")
        for r in (4, 8)
        for seed in (0, 1)
    ]
    found = keys_of(configs)
    assert found.grouping == ("strategy", "rank")
    assert found.following == ("stages.compress.rank",)
    assert found.ignored == ("seed",)
    assert "same" not in found.differing
    assert found.differing["rank"] == ["4", "4", "8", "8"] * 2


def test_swept_keys_are_shown_even_where_they_follow():
    configs = [{"rank": r, "kd": {"alpha": a}} for r, a in ((4, 0.1), (8, 0.2))]
    assert keys_of(configs).grouping == ("rank",)
    assert keys_of(configs, swept=["rank", "kd.alpha"]).grouping == ("rank", "kd.alpha")


def test_paths_seeds_and_noise_do_not_group_but_weights_do():
    configs = [
        {
            "seed": seed,
            "data": {"path": f"/data/{seed}", "split_seed": 0},
            "teacher": {"seed": seed, "weights": f"/w/{seed}.pt"},
            "log_level": str(seed),
            "out": f"/tmp/{seed}",
        }
        for seed in (0, 1)
    ]
    found = keys_of(configs)
    assert found.grouping == ("teacher.weights",)
    assert set(found.ignored) == {"seed", "data.path", "teacher.seed", "log_level", "out"}


def test_a_seed_that_does_not_follow_the_runs_seed_groups():
    configs = [{"seed": s, "data": {"split_seed": split}} for s in (0, 1) for split in (0, 1)]
    assert keys_of(configs).grouping == ("data.split_seed",)


def test_a_missing_key_is_a_value():
    assert keys_of([{"a": 1, "b": 1}, {"a": 1}]).differing["b"] == ["1", ABSENT]


def test_resolve_by_unique_ending_and_nearest_name():
    known = {"rank", "kd.alpha", "kd.temperature", "a.lr", "b.lr"}
    assert full_key("rank", known, "--by") == "rank"
    assert full_key("alpha", known, "--by") == "kd.alpha"
    with pytest.raises(UnknownKeyError, match=r"several keys, write one of a\.lr, b\.lr"):
        full_key("lr", known, "--by")
    with pytest.raises(
        UnknownKeyError, match=r"--by: no record has 'temprature'; did you mean kd\.temperature\?"
    ):
        full_key("temprature", known, "--by")
    with pytest.raises(UnknownKeyError, match=r"there is rank, a\.lr"):
        full_key("zzz", known, "--by")

import json

import pytest

from compresskd.compare.command import main
from compresskd.compare.comparison import Options, compare
from compresskd.compare.keys import UnknownKeyError
from compresskd.compare.numbers import is_fraction, lower_is_better, pick_latency, show
from compresskd.compare.study import load


def result(folder, **options):
    stage = options.get("stage", "final")
    return compare(load([folder], stage), Options(**options))


def codes(comparison):
    found = zip(comparison.study.entries, comparison.flags, strict=True)
    return {entry.run: [flag.code for flag in flags] for entry, flags in found if flags}


def test_groups_over_seeds_with_mean_deviation_and_interval(sweep):
    found = result(sweep)
    assert found.by == ("rank",)
    assert [group.values for group in found.groups] == [("16",), ("4",)]
    best = found.groups[0].summaries["test_accuracy"]
    assert best.n == 3
    assert best.mean == pytest.approx((180 + 179 + 178) / 600)
    assert best.std == pytest.approx(0.005)
    assert best.high is not None
    assert best.high - best.mean == pytest.approx(4.302652729749464 * 0.005 / 3**0.5)
    assert codes(found) == {}


def test_fronts_are_marked_for_bytes_macs_and_latency(sweep, run):
    worse = {"num_parameters": 9000, "folder_bytes": 90_000, "macs": 100}
    run(
        sweep / "big",
        config__rank=64,
        stages__0__size=worse,
        stages__0__latency_ms={"batch_1": 9.0},
        stages__0__metrics={"test_accuracy": 0.5},
    )
    fronts = {group.values: set(group.fronts) for group in result(sweep).groups}
    assert fronts[("16",)] == {"file_bytes", "macs", "latency"}
    assert fronts[("4",)] == {"file_bytes", "macs", "latency"}
    assert fronts[("64",)] == {"macs"}


def test_a_run_without_latency_is_none_of_its_mean_and_no_other_group(sweep, run):
    run(sweep / "o", seed=7, config__seed=7, config__measure={"latency": False}, stages__0__latency_ms=None)
    found = result(sweep)
    assert [group.values for group in found.groups] == [("16",), ("4",)]
    group = next(each for each in found.groups if each.values == ("16",))
    assert group.summaries["test_accuracy"].n == 4
    assert group.summaries["latency_batch_1"].n == 3
    assert codes(found) == {}


def test_unfinished_and_failed_runs_are_shown_and_do_not_count(sweep, run):
    for status in ("failed", "interrupted", "running", "odd"):
        error = {"type": "NonFiniteLoss", "message": "nan at epoch 3"} if status == "failed" else None
        run(
            sweep / status,
            status=status,
            seed=9,
            config__seed=9,
            error=error,
            overrides=["rank=16", "seed=9"],
        )
    found = result(sweep)
    group = found.groups[0]
    assert (len(group.members), len(group.counted)) == (7, 3)
    assert codes(found) == {
        "failed": ["failed"], "interrupted": ["interrupted"], "running": ["running"], "odd": ["unknown", "incomplete"],
    }  # fmt: skip
    flags = dict(zip((entry.run for entry in found.study.entries), found.flags, strict=True))
    assert flags["failed"][0].text == "failed: NonFiniteLoss: nan at epoch 3"
    assert "2026-11-24T20:36:12" in flags["running"][0].text


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"data__fingerprint": "d1"}, "data", "other data (d1; most records have d0)"),
        ({"data__test_fingerprint": "t1"}, "test set", "other test set (t1; most records have t0)"),
        ({"teacher__key": "k1"}, "teacher", "other teacher (k1; most records have k0)"),
        ({"schema": 2}, "schema", "schema 2, newer than 1"),
        ({"schema": 0}, "schema", "schema 0, older than 1"),
        (
            {"hardware__num_threads": 8},
            "hardware",
            "cpu, AMD, 8 threads; most records on cpu, AMD, 2 threads",
        ),
        ({"hardware__cpu": "Intel"}, "hardware", "latency measured on cpu, Intel"),
        ({"stages__0__metrics": {"loss": 1.0}}, "no metric", "stage distill has no test_accuracy"),
        ({"data__test_fingerprint": None}, "test set", "nobody can tell"),
    ],
)
def test_records_that_must_not_be_compared_are_flagged(sweep, run, change, code, said):
    run(sweep / "other", seed=7, config__seed=7, **change)
    found = result(sweep)
    assert codes(found)["other"][0] == code
    assert len(codes(found)) == 1
    texts = [flag.text for flags in found.flags for flag in flags]
    assert any(said in text for text in texts)


def test_other_test_sets_make_their_own_groups_and_fronts(sweep, run):
    run(sweep / "other", data__test_fingerprint="t1", stages__0__metrics={"test_accuracy": 1.0})
    found = result(sweep)
    assert len(found.groups) == 3
    assert all(
        group.fronts for group in found.groups
    )  # the other one's 100% does not push ours off the front
    assert any("must not be compared" in note for note in found.notes)


def test_latency_of_other_hardware_stays_out_of_the_mean(sweep, run):
    latency = {"batch_1": 100.0}
    run(sweep / "o", seed=7, config__seed=7, hardware__num_threads=8, stages__0__latency_ms=latency)
    group = next(group for group in result(sweep).groups if group.values == ("16",))
    assert group.summaries["test_accuracy"].n == 4
    assert group.mean("latency_batch_1") == pytest.approx(0.16)


def test_a_repeated_run_counts_once_the_newest(sweep, run):
    run(
        sweep / "again",
        seed=0,
        created="2026-11-25T00:00:00+00:00",
        stages__0__metrics={"test_accuracy": 0.1},
    )
    found = result(sweep)
    assert codes(found) == {"rank=16,seed=0": ["duplicate"]}
    assert next(group for group in found.groups if group.values == ("16",)).summaries["test_accuracy"].n == 3


def test_teachers_that_each_seed_trains_are_no_reason_to_flag(tmp_path, run):
    for seed in range(3):
        for rank in (4, 8):
            key = f"k{seed}"
            run(tmp_path / f"{rank}{seed}", seed=seed, config__seed=seed, config__rank=rank, teacher__key=key)
    assert codes(result(tmp_path)) == {}
    run(tmp_path / "odd", seed=1, config__seed=1, config__rank=16, teacher__key="k9")
    assert codes(result(tmp_path)) == {"odd": ["teacher"]}


def test_a_teacher_among_the_records_is_no_competitor(sweep, run):
    teacher = run(sweep / "teachers" / "k0", strategy="train", config__width=999, teacher=None)
    for path in sweep.glob("rank*/record.json"):
        record = json.loads(path.read_text())
        record["teacher"]["directory"] = str(teacher)
        path.write_text(json.dumps(record))
    found = result(sweep)
    assert found.by == ("rank",)  # the teacher's own options add no column
    assert codes(found) == {"teachers/k0": ["teacher run"]}
    assert sorted(len(group.counted) for group in found.groups) == [0, 3, 3]


def test_by_overrides_the_grouping_and_says_what_it_mixes(sweep):
    found = result(sweep, by=("strategy",))
    assert len(found.groups) == 1
    assert found.groups[0].summaries["test_accuracy"].n == 6
    assert found.notes == ("Groups mix records that differ in rank: n counts runs, not seeds.",)
    assert codes(found) == {}  # equal seeds at other ranks are no duplicates


def test_stage_all_has_a_line_a_stage(tmp_path, run, record):
    stages = [dict(record()["stages"][0], name=name) for name in ("distill", "finetune")]
    run(tmp_path / "a", stages=stages, final="finetune")
    assert [g.values for g in result(tmp_path, stage="all").groups] == [("distill",), ("finetune",)]
    assert result(tmp_path, stage="distill").study.entries[0].stage == "distill"
    with pytest.raises(UnknownKeyError, match="--stage: no record has 'finetun'; did you mean finetune"):
        result(tmp_path, stage="finetun")


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, ["16", "4"]),
        ({"reverse": True}, ["4", "16"]),
        ({"sort": "file_bytes"}, ["4", "16"]),
        ({"sort": "rank"}, ["4", "16"]),
        ({"sort": "rank", "reverse": True}, ["16", "4"]),
        ({"sort": "n"}, ["4", "16"]),
        ({"metrics": ("latency_batch_1",)}, ["4", "16"]),
    ],
)
def test_sorting(sweep, options, order):
    assert [group.values[0] for group in result(sweep, **options).groups] == order


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": ("rnak",)}, r"--by: no record has 'rnak'; did you mean rank\?"),
        (
            {"metrics": ("test_acuracy",)},
            r"--metric: no record has 'test_acuracy'; did you mean test_accuracy",
        ),
        ({"sort": "file_byte"}, r"--sort: no record has 'file_byte'; did you mean file_bytes"),
        ({"sort": "kd.alpha"}, r"--sort: no record has 'kd.alpha'"),
    ],
)
def test_misspelt_keys_get_the_nearest_name(sweep, options, said):
    with pytest.raises(UnknownKeyError, match=said):
        result(sweep, **options)


def test_directions_and_texts_of_numbers():
    assert [lower_is_better(n) for n in ("test_loss", "file_bytes", "compression_file_bytes", "test_accuracy")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert is_fraction("teacher_agreement")
    assert show("test_accuracy", 0.98765) == "98.77"
    assert show("file_bytes", 36064.0) == "36,064"
    assert show("latency_batch_1", 0.037345) == "0.03735"
    assert show("macs", None) == "–"
    assert pick_latency(["latency_batch_32", "latency_batch_4", "macs"]) == "latency_batch_4"
    assert pick_latency([]) is None


def test_the_interval_of_an_accuracy_stays_within_0_to_100_percent(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    for seed, accuracy in enumerate((0.999, 1.0, 0.9)):
        run(
            tmp_path / str(seed), seed=seed, config__seed=seed, stages__0__metrics={"test_accuracy": accuracy}
        )
    assert main([str(tmp_path)]) == 0
    assert "… 100.00" in capsys.readouterr().out

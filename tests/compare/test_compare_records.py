import json
import os

import pytest

from compresskd.compare.records import RecordError, read_record


def write(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_whole_record_is_read_without_problems(tmp_path, record):
    found = read_record(write(tmp_path, record()))
    assert found.problems == ()
    assert (found.schema, found.status, found.strategy, found.seed) == (1, "finished", "distill", 0)
    assert found.data.test_fingerprint == "t0"
    assert found.directory == tmp_path
    stage = found.final_stage
    assert stage is not None
    assert stage.metrics == {"test_accuracy": 0.9, "validation_accuracy": 0.91}
    assert stage.layers["fc"].ranks == (16,)
    assert stage.layers["fc"].num_parameters_dense == 1000
    assert stage.skipped == {"out": "break-even"}


def test_details_can_be_left_out(tmp_path, record):
    found = read_record(write(tmp_path, record()), details=False)
    assert found.stages[0].layers == {}
    assert found.stages[0].size["folder_bytes"] == 4000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b" \n", "empty file"),
        (b'{"schema": 1, "status": "fin', "cut off or damaged"),
        (b"\xff\xfe\x00\x01binary", "not valid JSON"),
        (b"[1, 2]", "a JSON list where an object was expected"),
        (b"null", "a JSON null where"),
        (b'{"name": "package", "version": 3}', "not a record of compresskd"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_garbage_is_refused_with_the_reason(tmp_path, content, said):
    with pytest.raises(RecordError, match=said):
        read_record(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "record.json")
    (tmp_path / "record.json").mkdir()
    with pytest.raises(RecordError, match="is no file"):
        read_record(tmp_path / "record.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(RecordError, match="is no file"):  # and does not hang
        read_record(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "three"}, "seed: expected a finite number, got text three"),
        ({"seed": True}, "seed: expected a finite number, got true/false"),
        ({"schema": None}, "schema: missing"),
        ({"status": "done"}, "status: expected one of running, finished, failed, interrupted, got 'done'"),
        ({"stages": {"distill": {}}}, "stages: expected a list, got object"),
        ({"stages": ["distill"]}, r"stages\[0\]: expected an object, got text"),
        ({"config": "a.yaml"}, "config: expected an object, got text"),
        ({"data__fingerprint": None}, "data.fingerprint: missing"),
        ({"hardware": 3}, "hardware: expected an object, got number"),
        ({"stages__0__metrics": None}, r"stages\[0\].metrics: missing"),
        (
            {"stages__0__metrics__test_accuracy": float("nan")},
            r"stages\[0\].metrics.test_accuracy: expected a finite number, got number nan",
        ),
        (
            {"stages__0__metrics__test_accuracy": 10**400},
            r"stages\[0\].metrics.test_accuracy: expected a finite number",
        ),
        (
            {"stages__0__size__folder_bytes": "4 kB"},
            r"stages\[0\].size.folder_bytes: expected a finite number, got text 4 kB",
        ),
        (
            {"stages__0__layers__fc": [1]},
            r"stages\[0\].layers.fc: expected an object, got list",
        ),
    ],
)
def test_wrong_fields_are_named_and_the_rest_is_read(tmp_path, record, change, said):
    found = read_record(write(tmp_path, record(**change)))
    assert len(found.problems) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.problems[0])
    assert found.wall_seconds == 41.2


def test_final_stage_without_a_name_is_the_last_finished_one(tmp_path, record):
    raw = record(final=None, status="failed")
    raw["stages"].append({"name": "finetune", "status": "failed", "metrics": {}})
    found = read_record(write(tmp_path, raw))
    assert found.final_stage is not None
    assert found.final_stage.name == "distill"
    assert read_record(write(tmp_path, record(final="absent"))).final_stage is None

"""A ratio of bytes is the product of its factors, in records, tables and files."""

import csv
import io
import json
from math import prod

import pytest

from compresskd.compare.command import main
from compresskd.compare.comparison import Options, compare
from compresskd.compare.factors import factor_table
from compresskd.compare.study import load
from compresskd.compare.tabular import csv_text
from compresskd.run import factors

SIZE = {
    "num_parameters": 2290, "folder_bytes": 4195, "macs": 25_856,
    "file_bytes": 1600, "packed_bytes": 1680, "float_bytes": 9200, "dense_bytes": 104_500,
}  # fmt: skip
TEACHER = {"num_parameters": 85_002, "folder_bytes": 340_794, "file_bytes": 340_000, "macs": 84_480}


def write(run, directory, size=SIZE, teacher=TEACHER, **changes):
    compression = {key: teacher[key] / size[key] for key in teacher if key in size} if teacher else {}
    return run(
        directory,
        right=[True] * 90 + [False] * 110,
        stages__0__size=size,
        stages__0__compression=compression,
        teacher={"key": "k0", "metrics": {}, "size": teacher} if teacher else None,
        **changes,
    )


def test_product_is_the_whole_ratio():
    found = factors(TEACHER, SIZE)
    assert list(found) == ["student", "factorization", "bits", "coding"]
    assert prod(found.values()) == pytest.approx(340_000 / 1600, rel=1e-12)
    assert found["bits"] == 9200 / 1680


def test_without_a_teacher_the_ratio_is_of_the_dense_student():
    found = factors(None, SIZE)
    assert list(found) == ["factorization", "bits", "coding"]
    assert prod(found.values()) == pytest.approx(104_500 / 1600, rel=1e-12)


@pytest.mark.parametrize("missing", ["file_bytes", "packed_bytes", "float_bytes", "dense_bytes"])
def test_records_of_earlier_versions_have_none(missing):
    assert factors(TEACHER, {key: value for key, value in SIZE.items() if key != missing}) == {}
    assert list(factors({"folder_bytes": 340_794}, SIZE)) == ["factorization", "bits", "coding"]


def test_bytes_are_those_of_the_compact_file(tmp_path, run):
    write(run, tmp_path / "new")
    run(tmp_path / "old", config__rank=4)
    new, old = load([tmp_path]).entries
    assert new.numbers["file_bytes"] == 1600
    assert new.numbers["compression_file_bytes"] == 340_000 / 1600
    assert new.numbers["folder_bytes"] == 4195
    assert new.numbers["factor_coding"] == 1680 / 1600
    assert old.numbers["file_bytes"] == 4000
    assert not any(name.startswith("factor_") for name in old.numbers)


def test_table_has_the_product_in_front_of_its_factors(tmp_path, run):
    for seed, compact in enumerate((1600, 1500)):
        size = {**SIZE, "file_bytes": compact}
        write(run, tmp_path / f"seed={seed}", size, seed=seed, config__seed=seed)
    write(run, tmp_path / "dense", {**SIZE, "file_bytes": 104_500, "packed_bytes": 104_500,
                                    "float_bytes": 104_500}, config__rank=0)  # fmt: skip
    comparison = compare(load([tmp_path]), Options())
    table = factor_table(comparison)
    assert [column.name for column in table.columns][1:] == [
        "compression (bytes)", "student", "factorization", "bits", "coding",
    ]  # fmt: skip
    for row in table.rows:
        whole, *parts = [cell.order for cell in row[1:]]
        assert prod(parts) == pytest.approx(whole, rel=1e-12)
    wholes = sorted(row[1].order for row in table.rows)
    assert wholes == pytest.approx([340_000 / 104_500, 340_000 / (1600 * 1500) ** 0.5], rel=1e-12)


def test_nothing_is_shown_where_only_the_student_is_smaller(tmp_path, run, sweep):
    assert factor_table(compare(load([sweep]), Options())).rows == ()
    dense = dict.fromkeys(("file_bytes", "packed_bytes", "float_bytes", "dense_bytes"), 104500)
    write(run, tmp_path / "dense", {**SIZE, **dense})
    assert factor_table(compare(load([tmp_path / "dense"]), Options())).rows == ()


def test_every_output_has_them(tmp_path, run, capsys):
    write(run, tmp_path / "run")
    places = {kind: tmp_path / f"out.{kind}" for kind in ("html", "markdown", "json", "csv")}
    main([str(tmp_path / "run"), *(f"--{kind}={path}" for kind, path in places.items())])
    assert "Compression by factor" in capsys.readouterr().out
    assert "Compression by factor" in places["html"].read_text()
    assert "Compression by factor" in places["markdown"].read_text()
    numbers = json.loads(places["json"].read_text())["runs"][0]["numbers"]
    assert numbers["factor_bits"] == 9200 / 1680
    line = next(csv.DictReader(io.StringIO(csv_text(compare(load([tmp_path / "run"]), Options())))))
    assert float(line["factor_student"]) == pytest.approx(340_000 / 104_500)

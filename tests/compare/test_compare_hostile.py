"""One bad record, number, cell or file takes down only itself."""

import csv
import io
import json
import os
import zipfile

import numpy as np
import pytest
from refusals import says

from compresskd.compare.command import main, summarize_sweep
from compresskd.compare.curves import curve, read_epochs
from compresskd.compare.markdown import escape
from compresskd.compare.predictions import PredictionsError, read_scores

IMPOSSIBLE = [
    ("metrics__test_accuracy", 1e308, says("test_accuracy", "0", "1", "1e+308")),
    ("metrics__test_accuracy", -1, says("test_accuracy", "0", "1", "-1")),
    ("metrics__test_accuracy", 2.5, says("test_accuracy", "0", "1", "2.5")),
    ("metrics__teacher_agreement", 1.01, says("teacher_agreement", "0", "1")),
    ("metrics__test_loss", -1e300, says("test_loss", "-1e+60", "1e+60")),
    ("size__folder_bytes", -5, says("folder_bytes", "0", "1e+60", "-5")),
    ("size__macs", 1e308, says("macs", "0", "1e+60", "1e+308")),
    ("latency_ms__batch_1", -0.1, says("batch_1", "0")),
    ("compression__folder_bytes", -2.0, says("folder_bytes", "0")),
    ("seconds", 1e200, says("seconds", "0")),
]


@pytest.mark.parametrize(("key", "value", "said"), IMPOSSIBLE)
def test_an_impossible_number_is_flagged_and_the_table_printed(
    sweep, run, tmp_path, capsys, key, value, said
):
    for seed in range(3):  # several of them: their squares are summed, too
        run(sweep / f"bad-{seed}", seed=seed, config__rank=99, **{f"stages__0__{key}": value})
    files = [f"--{kind}={tmp_path}/c.{kind}" for kind in ("csv", "markdown", "json", "html")]
    assert main([str(sweep), *files]) == 0
    out = capsys.readouterr().out
    assert "incomplete" in out
    assert said.search((tmp_path / "c.html").read_text())
    assert "rank=16" in out or " 16 " in out
    runs = json.loads((tmp_path / "c.json").read_text())["runs"]
    name = key.rpartition("__")[2] if "compression" not in key else "compression_folder_bytes"
    assert not [one for one in runs if "bad-" in one["run"] and name in one["numbers"]]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1+cmd",
        "-1+cmd|' /C calc'!A0",
        "@sum(a)",
        " =1+1",
        "＝1+1",
        "－1+x",
        "\r=1+1",
        "a\r=1+1",
        "a\n=1+1",
    ],
)
def test_no_cell_of_a_table_is_run_or_begins_another(tmp_path, run, text):
    run(tmp_path / "a", strategy=text, config__note=text, status=text, **{f"stages__0__metrics__{text}": 1.0})
    run(tmp_path / "b")
    out = tmp_path / "c.csv"
    assert main([str(tmp_path), "--csv", str(out)]) == 0
    content = out.read_bytes().decode()
    assert "\r" not in content
    rows = list(csv.reader(io.StringIO(content)))
    assert len(rows) == 3
    assert {len(row) for row in rows} == {len(rows[0])}
    signs = ("=", "+", "-", "@", "＝", "－")
    assert not [cell for row in rows for cell in row if cell.strip().startswith(signs)]


def test_a_negative_number_stays_a_number(tmp_path, run):
    run(tmp_path / "a", config__shift=-0.5)
    run(tmp_path / "b", config__shift=2)
    assert main([str(tmp_path), "--csv", str(tmp_path / "c.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert [row["shift"] for row in rows] == ["-0.5", "2"]


def test_markdown_holds_no_link_and_no_escape_sequence():
    assert escape("[x](javascript:alert(1))") == "\\[x\\]\\(javascript:alert(1))"
    assert escape("![x](y) <a href=z> \x1b[31m") == "\\!\\[x\\]\\(y) \\<a href=z\\> \\\\x1b\\[31m"


def make_fifo(path):
    os.mkfifo(path)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)  # of holes: it takes no room


@pytest.mark.parametrize(
    "spoil",
    [
        make_fifo,
        make_huge,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.write_bytes(b"PK\x03\x04 cut off"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("null\nnull\n"),
    ],
)
@pytest.mark.parametrize("name", ["predictions.npz", "metrics.jsonl"])
def test_what_is_no_file_of_ours_costs_its_tests_only(sweep, name, spoil, tmp_path, capsys):
    folder = sweep / "rank=4,seed=0"
    (folder / name).unlink(missing_ok=True)
    spoil(folder / name)
    assert main([str(sweep), "--html", str(tmp_path / "c.html")]) == 0
    assert "6 records (6 finished)" in capsys.readouterr().out
    assert read_epochs(folder) == []


@pytest.mark.slow
def test_arrays_that_claim_or_hold_too_much_are_refused(tmp_path):
    header = np.lib.format.magic(1, 0)
    claims = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
    claims += b" " * (118 - len(claims) - 1) + b"\n"
    header += len(claims).to_bytes(2, "little") + claims
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w") as archive:
        archive.writestr("distill.npy", header)
        archive.writestr("targets.npy", header)
    with pytest.raises(PredictionsError, match="cannot be read"):
        read_scores(tmp_path, "distill")
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("distill.npy", bytes(2**28 + 1))
        archive.writestr("targets.npy", b"")
    with pytest.raises(PredictionsError, match="out of proportion"):
        read_scores(tmp_path, "distill")


def test_numbers_of_a_curve_that_no_plot_can_show_are_left_out():
    epochs = [
        {"epoch": n, "loss": value} for n, value in enumerate([1.0, 10**400, 1e300, float("nan"), True, 2])
    ]
    assert curve(epochs, "loss").points == ((0, 1.0), (5, 2.0))


def test_a_link_in_a_sweeps_folder_is_not_written_through(sweep, tmp_path):
    (sweep / "compare.html").symlink_to(tmp_path / "elsewhere.html")
    assert "compare.html: is a link" in (summarize_sweep(sweep) or "")
    assert not (tmp_path / "elsewhere.html").exists()
    assert (sweep / "compare.csv").exists()

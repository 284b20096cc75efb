import csv
import io
import json
import os
import subprocess
import sys

import pytest

from compresskd.compare import main, summarize_sweep

GOLDEN = """\
6 records (6 finished) in 2 groups.
★: on the Pareto front of test accuracy against B bytes, M MACs, L latency batch 1.

Results

 rank   n   test accuracy (%)   ± std    95% interval    p (Holm)   front    bytes    MACs   latency batch 1 (ms)
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 16     3               89.50    0.50   88.26 … 90.74   reference   ★ BML   16,000   8,000                   0.16
 4      3               79.50    0.50   78.26 … 80.74      0.0002   ★ BML    4,000   2,000                   0.04

Equal in every group: compression (bytes) 4.00.

Paired tests

 group    pairs   difference (points)     95% interval        p   p (Holm)                over seeds   McNemar
 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
 rank=4       3                -10.00   -14.17 … -6.17   0.0002     0.0002   -10.00 [-10.00, -10.00]   3 of 3

Reference: rank=16 — the best test accuracy.
Always about test accuracy, in percentage points; positive: the group is better.
"""


def test_golden_comparison(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "\n".join(line.rstrip() for line in out.splitlines()) + "\n" == GOLDEN


def test_every_output_holds_the_same_comparison(sweep, tmp_path, capsys):
    files = {kind: tmp_path / f"c.{kind}" for kind in ("html", "csv", "markdown", "json")}
    assert (
        main([str(sweep), *(part for kind, path in files.items() for part in (f"--{kind}", str(path)))]) == 0
    )
    assert capsys.readouterr().out.count("Wrote ") == 4
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["rank"] for row in rows] == ["16"] * 3 + ["4"] * 3
    assert {row["group_mean"] for row in rows[:3]} == {"0.895"}
    assert [row["pareto_file_bytes"] for row in rows] == ["1"] * 6
    assert float(rows[0]["test_accuracy"]) == 0.9
    document = json.loads(files["json"].read_text())
    assert document["groups"][0]["keys"] == {"rank": "16"}
    assert document["groups"][0]["summaries"]["test_accuracy"]["n"] == 3
    assert document["groups"][1]["pareto"] == ["file_bytes", "macs", "latency"]
    assert document["tests"]["results"][0]["bootstrap"]["difference"] == pytest.approx(-0.1)
    assert len(document["runs"]) == 6
    text = files["markdown"].read_text()
    assert "| 16 | 3 | 89.50 | 0.50 | 88.26 … 90.74 | reference | **★ BML** |" in text
    assert "89.50" in files["html"].read_text()


GARBAGE = {
    "truncated": (b'{"schema": 1, "sta', "not valid JSON (cut off or damaged)"),
    "foreign": (b'{"name": "x", "private": true}', "not a record of compresskd"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "list": (b"[]", "a JSON list where an object was expected"),
    "nothing": (b"", "empty file"),
}


def test_garbage_is_named_and_the_rest_is_compared(sweep, tmp_path, capsys):
    for name, (content, _) in GARBAGE.items():
        (sweep / name).mkdir()
        (sweep / name / "record.json").write_bytes(content)
    (tmp_path / "empty").mkdir()
    assert main([str(sweep), str(tmp_path / "empty"), str(tmp_path / "absent")]) == 0
    captured = capsys.readouterr()
    assert "6 records (6 finished) in 2 groups." in captured.out
    for name, (_, said) in GARBAGE.items():
        line = next(line for line in captured.err.splitlines() if f"/{name}/record.json" in line)
        assert said in line
    assert "empty: holds no record.json" in captured.err
    assert "absent: does not exist" in captured.err


def test_records_of_other_layouts_are_compared_as_far_as_they_go(sweep, capsys):
    (sweep / "old").mkdir()
    old = {"status": "finished", "strategy": "distill", "accuracy": 0.9, "config": {"rank": 16}}
    (sweep / "old" / "record.json").write_text(json.dumps(old))
    (sweep / "new").mkdir()
    new = {"schema": 7, "status": "finished", "strategy": "distill", "stages": {"a": 1}, "config": []}
    (sweep / "new" / "record.json").write_text(json.dumps(new))
    assert main([str(sweep), "--json", str(sweep / "c.json")]) == 0
    assert "8 records (8 finished)" in capsys.readouterr().out
    runs = {run["run"]: run for run in json.loads((sweep / "c.json").read_text())["runs"]}
    texts = {name: "; ".join(flag["text"] for flag in runs[name]["flags"]) for name in ("old", "new")}
    assert "no schema number: an unknown layout" in texts["old"]
    assert "stages: missing (a list expected)" in texts["old"]
    assert "schema 7, newer than 1" in texts["new"]
    assert "stages: expected a list, got object" in texts["new"]


def test_many_unreadable_files_are_counted(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number:02d}").mkdir()
        (tmp_path / f"{number:02d}" / "record.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 12
    assert "Not read: 20 further paths (20 not valid JSON (cut off or damaged))" in captured.err
    assert "Nothing to compare" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: DIR"),
        (["{}", "--bye", "rank"], "unrecognized arguments: --bye rank"),
        (["{}", "--by", "rnak"], "--by: no record has 'rnak'; did you mean rank?"),
        (["{}", "--by", ","], "expected one or several names"),
        (["{}", "--metric", "test_acc"], "did you mean test_accuracy"),
        (["{}", "--sort", "rnk"], "did you mean rank"),
        (["{}", "--stage", "destill"], "did you mean distill"),
        (["{}", "--reference", "rank=3"], "no finished group is 'rank=3'"),
        (["{}", "--rows", "-3"], "expected a whole number, 0 for all rows; got '-3'"),
        (["{}", "--csv", "{}/no/such.csv"], "does not exist"),
        (["{}", "--csv", "{}"], "is no ordinary file"),
        (["{}", "--csv", "{}/x", "--json", "{}/x"], "give each its own file"),
    ],
)
def test_a_wrong_command_line_is_told_so(sweep, capsys, arguments, said):
    assert main([part.replace("{}", str(sweep)) for part in arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_help_names_every_option(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    options = [
        "by",
        "metric",
        "sort",
        "reverse",
        "stage",
        "reference",
        "rows",
        "html",
        "csv",
        "json",
        "force",
    ]
    assert [name for name in options if f"--{name}" not in out] == []


@pytest.mark.parametrize("kind", ["html", "csv", "markdown", "json"])
def test_only_own_files_are_overwritten(sweep, tmp_path, capsys, kind):
    path = tmp_path / "file"
    path.write_text("my thesis")
    assert main([str(sweep), f"--{kind}", str(path)]) == 2
    assert (
        "was not written by compresskd compare; choose another name or add --force" in capsys.readouterr().err
    )
    assert path.read_text() == "my thesis"
    assert main([str(sweep), f"--{kind}", str(path), "--force"]) == 0
    first = path.read_text()
    assert main([str(sweep), f"--{kind}", str(path)]) == 0
    assert path.read_text() == first
    assert sorted(os.listdir(tmp_path)) == ["file", "sweep"]


def test_a_link_is_written_through_and_a_full_disk_is_told(sweep, tmp_path, capsys, monkeypatch):
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    assert main([str(sweep), "--csv", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text().startswith("compare_group")

    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    assert main([str(sweep), "--csv", str(tmp_path / "new.csv")]) == 2
    assert "new.csv: cannot be written: No space left on device" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "sweep", "target.csv"]


def test_a_single_run_and_a_record_itself(sweep, capsys):
    one = sweep / "rank=4,seed=0"
    assert main([str(one)]) == 0
    assert main([str(one / "record.json")]) == 0
    assert capsys.readouterr().out.count("1 record (1 finished) in 1 group.") == 2


def test_long_tables_are_cut_with_a_note(tmp_path, run, capsys):
    for rank in range(1, 61):
        run(tmp_path / str(rank), config__rank=rank)
    assert main([str(tmp_path)]) == 0
    assert "20 further rows not shown (--rows 0 shows all" in capsys.readouterr().out
    assert main([str(tmp_path), "--rows", "0"]) == 0
    assert "further rows" not in capsys.readouterr().out


def test_a_narrow_terminal_keeps_the_essential_columns(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 85  # notes wrap at 72; a line is never far beyond
    assert "Hidden for want of width: 95% interval, MACs, latency batch 1 (ms)" in out.replace("\n", " ")


def test_names_cannot_steer_the_terminal_or_break_a_table(tmp_path, run, capsys):
    run(tmp_path / "\x1b[31mred|[bold]\n", status="failed", config__note="=1+1|`x`<b>")
    run(tmp_path / "b", config__note="fine")
    files = [f"--{kind}={tmp_path}/c.{kind}" for kind in ("csv", "markdown")]
    assert main([str(tmp_path), *files]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred|[bold]\\x0a" in out
    assert "'=1+1|`x`<b>" in (tmp_path / "c.csv").read_text()
    row = next(line for line in (tmp_path / "c.markdown").read_text().splitlines() if "1+1" in line)
    assert "\\|\\`x\\`\\<b\\>" in row


def test_sweep_summary_writes_its_files_and_returns_the_table(sweep):
    text = summarize_sweep(sweep)
    assert text is not None
    assert text.startswith("6 records (6 finished) in 2 groups.")
    assert {"compare.html", "compare.csv", "compare.md"} <= set(os.listdir(sweep))
    again = summarize_sweep(sweep)  # its own files are no records and no obstacle
    assert again == text


def test_sweep_summary_survives_failures(tmp_path, run):
    assert summarize_sweep(tmp_path) is None
    run(tmp_path / "a", status="failed", stages=[], final=None, error={"type": "E", "message": "m"})
    (tmp_path / "compare.csv").write_text("mine")
    text = summarize_sweep(tmp_path)
    assert text is not None
    assert "1 record (1 failed)" in text
    assert "Not written: " in text
    assert (tmp_path / "compare.csv").read_text() == "mine"
    assert (tmp_path / "compare.md").exists()


def test_a_closed_pipe_is_no_error(sweep):
    code = "import sys; from compresskd.compare import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep)], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_starts_without_torch_or_other_heavy_parts(sweep):
    code = (
        "import sys; from compresskd.compare import main; main(sys.argv[1:]);"
        "print([name for name in ('torch', 'scipy', 'pandas', 'hydra', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"

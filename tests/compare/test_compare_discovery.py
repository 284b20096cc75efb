import os

from compresskd.compare.discovery import find_records


def test_records_at_any_depth_each_once(tmp_path, run):
    shallow, deep = run(tmp_path / "a"), run(tmp_path / "b" / "c" / "d")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(shallow, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    found, problems = find_records([tmp_path, shallow, deep / "record.json"])
    assert {path.resolve() for path in found} == {shallow / "record.json", deep / "record.json"}
    assert problems == []


def test_what_holds_nothing_is_said(tmp_path, run):
    run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "record.json").symlink_to("record.json")
    roots = [tmp_path / name for name in ("good", "empty", "absent", "notes.txt", "self", "x" * 300)]
    found, problems = find_records(roots)
    assert found == [tmp_path / "good" / "record.json"]
    reasons = {problem.path.name[:9]: problem.reason for problem in problems}
    assert reasons["empty"].startswith("holds no record.json")
    assert reasons["absent"] == "does not exist"
    assert "neither a folder" in reasons["notes.txt"]
    assert "Too many levels" in reasons["record.js"]
    assert "File name too long" in reasons["x" * 9]


def test_a_folder_without_permission_does_not_stop_the_search(tmp_path, run, monkeypatch):
    run(tmp_path / "good")
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scandir(folder):  # tests may run as root, whom no permission stops
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found, problems = find_records([tmp_path])
    assert len(found) == 1
    assert [problem.reason for problem in problems] == ["cannot be listed: Permission denied"]

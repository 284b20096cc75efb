"""The run directory: taken by one process, never overwritten, written whole or not at all."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import filelock
import pytest

from compresskd.run import (
    FINISHED,
    AlreadyFinished,
    InUse,
    Record,
    RunDirectoryError,
    atomic,
    atomic_folder,
    describe_owner,
    open_run,
    read_checked,
    read_record,
    write_checked,
    write_text,
)
from compresskd.run.later import with_later_keys

HOLDER = """
import sys, time
from pathlib import Path
from compresskd.run import Record, open_run
run = open_run(Path(sys.argv[1]))
run.start(Record("s", {}, [], 0))
print("held", flush=True)
time.sleep(60)
"""

STAGE = {
    "name": "distill", "checkpoint": "checkpoints/distill", "packages": [], "status": "finished",
    "metrics": {"validation_accuracy": 0.5, "test_accuracy": 0.5}, "size": {"num_parameters": 9, "folder_bytes": 9},
    "latency_ms": {"batch_1": 1.0, "batch_32": 1.0},
}  # fmt: skip


def record(**options):
    return Record("distill", {"rank": 4}, ["rank=4"], 0, **options)


def finish(directory):
    run = open_run(directory)
    run.start(record())
    run.record.status = FINISHED
    run.save()
    run.close()


def listing(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestOpen:
    def test_new_directory_holds_only_lock_and_owner(self, tmp_path):
        run = open_run(tmp_path / "deep" / "run")
        assert not run.resumed
        assert sorted(listing(run.directory)) == ["run.lock", "run.owner"]
        run.close()
        assert sorted(listing(run.directory)) == ["run.lock"]

    def test_held_directory_is_refused_with_its_owner(self, tmp_path, holder):
        words = rf"in use by another process \(process {holder.pid} on {socket.gethostname()} since 2"
        with pytest.raises(InUse, match=words):
            open_run(tmp_path / "run")
        assert describe_owner(tmp_path / "run").startswith(f"process {holder.pid} on ")
        holder.kill()
        holder.wait()
        run = open_run(tmp_path / "run")
        assert run.resumed
        assert describe_owner(tmp_path / "run").startswith(f"process {os.getpid()} on ")
        run.close()

    def test_owner_that_died_is_given_no_credit_before_the_new_one_signs(self, tmp_path):
        run = open_run(tmp_path)
        owner = (tmp_path / "run.owner").read_text()
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / "run.owner").write_text(owner.replace(str(os.getpid()), str(dead.pid)))
        signing = threading.Timer(0.1, (tmp_path / "run.owner").write_text, [owner])
        signing.start()
        assert describe_owner(tmp_path) == owner
        signing.join()
        run.close()

    def test_unsigned_lock_has_an_unnamed_owner(self, tmp_path):
        run = open_run(tmp_path)
        (tmp_path / "run.owner").unlink()
        assert describe_owner(tmp_path) == "a process that has not given its name"
        run.close()

    def test_waiting_gets_the_directory_when_its_holder_dies(self, tmp_path, holder):
        threading.Timer(0.2, holder.kill).start()
        run = open_run(tmp_path / "run", wait=-1)
        assert run.resumed
        run.close()

    def test_waiting_ends_when_the_holder_finishes(self, tmp_path):
        run = open_run(tmp_path / "run")
        run.start(record())

        def finish_soon():
            run.record.status = FINISHED
            run.save()
            run.close()

        outcome = []

        def wait():
            try:
                open_run(tmp_path / "run", wait=20)
            except AlreadyFinished as error:
                outcome.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        threading.Timer(0.2, finish_soon).start()
        waiting.join(timeout=30)
        assert len(outcome) == 1
        assert sorted(listing(tmp_path / "run")) == ["record.json"]

    def test_finished_run_is_refused_and_not_touched(self, tmp_path):
        finish(tmp_path)
        before, stamp = listing(tmp_path), tmp_path.stat().st_mtime_ns
        assert sorted(before) == ["record.json"]
        with pytest.raises(AlreadyFinished, match=r"never overwritten; write another hydra\.run\.dir=DIR"):
            open_run(tmp_path)
        assert listing(tmp_path) == before
        assert tmp_path.stat().st_mtime_ns == stamp

    def test_unique_takes_the_next_free_name(self, tmp_path, holder):
        finish(tmp_path / "run_2")
        unfinished = open_run(tmp_path / "run_3")
        unfinished.start(record())
        unfinished.close()
        run = open_run(tmp_path / "run", unique=True)
        assert run.directory == tmp_path / "run_4"
        assert not run.resumed
        run.close()

    def test_unreadable_record_is_refused_and_let_go(self, tmp_path):
        (tmp_path / "record.json").write_text('{"strategy": ')
        for _ in range(2):
            with pytest.raises(RunDirectoryError, match=r"record\.json cannot be read: "):
                open_run(tmp_path)

    def test_directory_without_record_says_what_to_do(self, tmp_path):
        with pytest.raises(RunDirectoryError, match=r"no record\.json .*start it again"):
            read_record(tmp_path)

    def test_file_in_the_way(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(RunDirectoryError, match=r"cannot write to .*: Not a directory; write another"):
            open_run(tmp_path / "file" / "run")

    def test_leftovers_of_a_killed_process_are_removed(self, tmp_path):
        (tmp_path / "record.json").write_text('{"strategy": "s", "config": {}, "overrides": [], "seed": 0}')
        for parent in (tmp_path, tmp_path / "checkpoints"):
            (parent / ".distill.0a1b.compresskd-tmp").mkdir(parents=True)
            (parent / ".distill.0a1b.compresskd-tmp" / "model.safetensors").touch()
            (parent / ".record.json.0a1b.compresskd-tmp").touch()
            (parent / ".hydra").mkdir()
        run = open_run(tmp_path)
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [".hydra"]
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".hydra"]
        run.close()


class TestFileSystemWithoutLocks:
    """Whatever the file system answers to flock, the user learns what to do."""

    def test_soft_lock_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
        for _ in range(2):
            with pytest.raises(RunDirectoryError, match="file system without file locks"):
                open_run(tmp_path)

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (NotImplementedError("no flock"), "file system without file locks"),
            (OSError(errno.ENOLCK, "No locks available"), "No locks available; write another outputs_dir"),
        ],
    )
    def test_errors_of_flock(self, tmp_path, monkeypatch, error, words):
        def fails(self, *args, **kwargs):
            raise error

        monkeypatch.setattr(filelock.FileLock, "acquire", fails)
        with pytest.raises(RunDirectoryError, match=words):
            open_run(tmp_path)


class TestRecord:
    def test_round_trip_and_later_keys(self, tmp_path):
        run = open_run(tmp_path)
        run.start(record(data={"fingerprint": "f"}))
        run.record.stages.append(STAGE)
        run.save()
        run.close()
        path = tmp_path / "record.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "of a later version": 1}))
        again = read_record(tmp_path)
        assert again == replace(run.record, config=with_later_keys({"rank": 4}))
        assert again.stage("distill") == STAGE
        assert again.stage("other") is None

    def test_wall_seconds_sum_over_openings(self, tmp_path):
        run = open_run(tmp_path)
        run.start(record())
        run.recall_seconds(100.0)
        run.save()
        run.close()
        again = open_run(tmp_path)
        again.recall_seconds(50.0)  # an older checkpoint takes nothing away
        again.start(record())
        assert 100.0 < again.record.wall_seconds < 110.0
        again.close()

    @pytest.mark.parametrize("text", ["[]", "{}", '{"strategy": 1}', "null"])
    def test_foreign_json(self, tmp_path, text):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(RunDirectoryError, match=r"record\.json cannot be read"):
            read_record(tmp_path)


class TestMetrics:
    def test_rewind_keeps_what_counts(self, tmp_path):
        run = open_run(tmp_path)
        for stage, epoch in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)):
            run.append_metrics({"stage": stage, "epoch": epoch})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"stage": "b", \xff')
        run.rewind_metrics("b", 1, {"a"})
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [(line["stage"], line["epoch"]) for line in lines] == [("a", 0), ("a", 1), ("b", 0)]
        run.close()


class TestFiles:
    def test_failed_write_leaves_the_old_file_alone(self, tmp_path):
        path = tmp_path / "file"
        write_text(path, "old")
        with contextlib.suppress(ZeroDivisionError), atomic(path) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError
        assert listing(tmp_path) == {"file": b"old"}

    def test_failed_folder_leaves_the_old_one_alone(self, tmp_path):
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("old")
        with contextlib.suppress(ZeroDivisionError), atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "b").write_text("new")
            raise ZeroDivisionError
        assert listing(tmp_path / "folder") == {"a": b"old"}
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("new")
        assert listing(tmp_path / "folder") == {"a": b"new"}
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]

    def test_a_folder_with_more_than_the_new_one_is_not_replaced(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.tex").write_text("mine")
        with (
            pytest.raises(RunDirectoryError, match=r"holds thesis\.tex, which is no part of a model"),
            atomic_folder(tmp_path / "folder") as temporary,
        ):
            (temporary / "a").write_text("new")
        assert listing(tmp_path / "folder") == {"thesis.tex": b"mine"}
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]

    def test_files_are_as_open_to_others_as_the_umask_says(self, tmp_path):
        old = os.umask(0o027)
        try:
            write_text(tmp_path / "file", "")
        finally:
            os.umask(old)
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640

    def test_checked_round_trip_and_every_damaged_byte(self, tmp_path):
        path = tmp_path / "training.ckpt"
        write_checked(path, b"payload")
        assert read_checked(path) == b"payload"
        content = path.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(RunDirectoryError, match="remove it to repeat the stage"):
                read_checked(path)
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(RunDirectoryError, match="remove it to repeat the stage"):
                read_checked(path)


def test_reading_records_imports_no_torch():
    code = "import sys, compresskd.run; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0

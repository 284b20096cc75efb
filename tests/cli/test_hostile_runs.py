"""Run directories that came from anywhere, by a seeded generator: each is refused in words, or answers as it did."""

import hashlib
import io
import json
import random
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import (
    BYTES_CHANGES,
    LARGE,
    SENTINEL,
    VALUES,
    WATCH,
    change_kind,
    change_plain,
    count,
    watched,
    write_json,
)

from compresskd.listeners.console import Reporter

COMMON = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=96", "data.num_test=64", "student.hidden=[16]", "teacher.hidden=[24]", "epochs=2",
    "teacher_fit.epochs=1", "rank=3",
)  # fmt: skip
RUNS = {
    "finished": (*COMMON, "strategy=distill_then_compress", "bits=4"),
    "interrupted": (*COMMON, "strategy=distill_then_compress", "bits=4"),
    "ladder": (
        *COMMON, "strategy=multi_stage", "rank_schedule=explicit", "rank_schedule.stages=[{rank: 3},{rank: 2}]",
    ),
}  # fmt: skip
MAGIC = b"compresskd-checkpoint-1\n"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def originals(run_cli, work, kept, monkeypatch):
    """By name: a folder with a run in it, and the run's teacher; and the bytes that the finished run ends with."""

    def stop(self, record, epochs):
        if self._prefix == "" and record.epoch == 0 and Path("run/checkpoints/distill").exists():
            raise KeyboardInterrupt

    for name, arguments in RUNS.items():
        if (kept / name).exists():
            continue
        with monkeypatch.context() as patch:
            if name == "interrupted":
                patch.setattr(Reporter, "epoch", stop)
            outcome = run_cli(*arguments, "hydra.run.dir=run")
        assert outcome.status == (130 if name == "interrupted" else 0), outcome.err
        shutil.copytree(work, kept / name)
        shutil.rmtree(work / "run")
        if name == "finished":
            shutil.rmtree(work / "outputs")
    for path in (work / "outputs", work / "run"):
        shutil.rmtree(path, ignore_errors=True)
    return kept


def change_record(choose, path):
    """Parseable nonsense. How long a configuration asks to train, and on how much, is its own affair."""
    record, place = json.loads(path.read_text()), ""
    for _ in range(choose.choice([1, 1, 2])):
        values = VALUES if choose.random() < 0.5 else [*VALUES, *LARGE]
        keep = ("config",) if values is not VALUES else ("epochs", "num_train", "num_test")
        record, place = change_plain(choose, record, values, keep)
        if not isinstance(record, dict):
            break
    write_json(choose, path, record)
    return f"record: {place}"


def change_predictions(choose, path):
    how = choose.choice(["bomb", "absurd", "objects", "other arrays", "names"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if how == "bomb":
            archive.writestr("distill.npy", bytes(3 * 10**8))
        elif how == "absurd":
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": (10**12,)}
            )
            archive.writestr("distill.npy", header.getvalue())
        elif how == "objects":
            array = io.BytesIO()
            np.save(array, np.array([{}], dtype=object), allow_pickle=True)
            archive.writestr("distill.npy", array.getvalue())
        elif how == "other arrays":
            array = io.BytesIO()
            np.save(array, np.zeros((2, 2)))
            archive.writestr("targets.npy", array.getvalue())
        else:
            archive.writestr("../../away.npy", b"x")
    path.write_bytes(buffer.getvalue())
    return how


def change_metrics(choose, path):
    lines = path.read_text().splitlines()
    odd = ['{"stage": 3, "epoch": 0}', '{"stage": "x", "epoch": "y"}', "[" * 10**5]
    line = choose.choice(["null", "[]", "3", "{", "", *odd])
    lines.insert(choose.randrange(len(lines) + 1), line)
    path.write_text("\n".join(lines) + choose.choice(["", "\n"]))
    return f"line {line[:40]}"


def change_training(choose, path):
    """Sealed again, as somebody does on purpose."""
    state = {"stage": "distill", "seconds": 0.0, "wall_seconds": 0.0, "state": {}}
    wrong = [{**state, "state": []}, {**state, "seconds": "x"}, {**state, "stage": 3}]
    content = choose.choice([None, [], {}, state, {**state, "stage": "finetune"}, _Bomb(), *wrong])
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = choose.choice([buffer.getvalue(), b"", b"\x80\x04N.", choose.randbytes(1000)])
    path.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
    return "sealed"


class _Bomb:
    def __reduce__(self):
        return open, ("executed", "w")


OF_KIND = {
    "predictions.npz": change_predictions,
    "metrics.jsonl": change_metrics,
    "training.ckpt": change_training,
}


def damage(choose, case):
    """Change one file of a run or of its teacher; its path, and how."""
    files = sorted(
        path for path in case.rglob("*") if path.is_file() and path.suffix not in (".owner", ".lock")
    )
    path, how = choose.choice(files), choose.randrange(5)
    if how == 0:
        path = choose.choice([p for p in files if p.name == "record.json"])
        return path, change_record(choose, path)
    if how == 1:
        return path, change_kind(choose, path)
    if how == 2 and path.name in OF_KIND:
        return path, OF_KIND[path.name](choose, path)
    if how == 3:  # another run's, or stage's, whole and valid
        alike = [other for other in files if other.name == path.name and other != path] or [path]
        path.write_bytes(choose.choice(alike).read_bytes())
        return path, "another's"
    name = choose.choice(list(BYTES_CHANGES))
    path.write_bytes(BYTES_CHANGES[name](choose, path.read_bytes(), choose.choice(files).read_bytes()))
    return path, name


VERBS = {
    "evaluate": lambda stage: ["evaluate", "run"],
    "evaluate a stage": lambda stage: ["evaluate", "run", stage],
    "resume": lambda stage: ["resume", "run"],
    "compare": lambda stage: ["compare", "."],
    "export": lambda stage: ["export", "run", "--to", "dense"],
}


def judge(tried, originals, run_cli, work):
    (work / f"{SENTINEL}.py").write_text("open('executed', 'w')")
    found = {}
    for number in range(tried):
        choose = random.Random(number)
        name, verb = choose.choice(list(RUNS)), choose.choice(list(VERBS))
        if name == "interrupted":
            verb = choose.choice(["resume", "resume", verb])
        case = originals / name
        for part in ("run", "outputs"):
            shutil.copytree(case / part, work / part)
        before = (work / "run" / "model" / "model.ckd").read_bytes() if name != "interrupted" else None
        path, how = damage(choose, work)
        what = f"{number}: {verb} {name}, {path.relative_to(work)}: {how}"
        with watched():
            outcome = run_cli(*VERBS[verb]("distill"))
        found[outcome.status] = found.get(outcome.status, 0) + 1
        assert outcome.status in (0, 1, 2), (what, outcome.err)
        assert "Traceback" not in outcome.err, (what, outcome.err)
        assert "--verbose shows where" not in outcome.err, (what, outcome.err)
        assert "allow_pickle" not in outcome.err, what
        assert outcome.status == 0 or (outcome.err + outcome.out).strip(), what
        if outcome.status == 0 and verb == "evaluate":
            assert re.search(r": reproduced|nothing to reproduce", outcome.out), (what, outcome.out)
            if path.parent.name == "model":
                assert (
                    path.parents[1].name != "run" or before == (work / "run/model/model.ckd").read_bytes()
                ), what
        if outcome.status == 0 and verb == "resume" and path.name != "record.json":
            assert (work / "run/model/model.ckd").read_bytes() == expected(originals), what
        for part in ("run", "outputs"):
            shutil.rmtree(work / part)
        for stray in (path.parent / f"{path.name}.away", work / "run-dense"):
            shutil.rmtree(stray, ignore_errors=True)
    assert not (work / "executed").exists()
    told = f"{tried} run directories, by exit code {found}; {WATCH}"
    print(told)  # noqa: T201 - shown by -s


def expected(originals):
    return (originals / "finished" / "run" / "model" / "model.ckd").read_bytes()


@pytest.mark.slow
def test_hostile_run_directories(originals, run_cli, work):
    judge(count(40, 300), originals, run_cli, work)

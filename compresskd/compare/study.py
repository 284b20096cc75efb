"""The records of a comparison, reduced to what tables need, so that ten thousand of them fit in memory."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from compresskd.compare.discovery import Problem, find_records
from compresskd.compare.keys import change
from compresskd.compare.records import Record, RecordError, StageRecord, read_record
from compresskd.run.factors import factors
from compresskd.run.flat import canonical, flatten

FINAL, ALL = "final", "all"
_PARTS = ("packed_bytes", "float_bytes", "dense_bytes")  # what factors are made of


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage of one run: a line of the comparison. `numbers` holds every measured number by its name."""

    run: str
    path: Path
    stage: str
    kind: str
    status: str
    strategy: str
    seed: int | None
    created: str
    updated: str
    schema: int | None
    data: str | None
    test: str | None
    monitor: str
    score: str
    teacher: str | None
    teacher_directory: str | None
    hardware: tuple[str, ...]
    error: str | None
    search: Mapping[str, object]
    problems: tuple[str, ...]
    numbers: Mapping[str, float]
    config: Mapping[str, str]  # differences from Study.base

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.path.parent


@dataclass(frozen=True)
class Study:
    """All entries, the config that theirs are differences from, and what could not be read."""

    entries: tuple[Entry, ...]
    base: Mapping[str, str]
    swept: tuple[str, ...]
    stages: Mapping[str, int]
    problems: tuple[Problem, ...]
    num_records: int

    def value(self, entry: Entry, key: str) -> str | None:
        """The value of a config key in an entry's record, None where it has no such key."""
        return entry.config.get(key, self.base.get(key))


def load(roots: Sequence[Path], stage: str = FINAL) -> Study:
    """Read every record at or below `roots` and keep one stage (`final`, or a name) or `all` of each.

    A run that never reached the wanted stage keeps its line, without numbers.
    """
    paths, problems = find_records(roots)
    above = _common_folder(paths)
    entries: list[Entry] = []
    stages: Counter[str] = Counter()
    base: dict[str, str] | None = None
    swept: dict[str, None] = {}
    num_records = 0
    for path in paths:
        try:
            record = read_record(path, details=False)
        except RecordError as error:
            problems.append(Problem(path, error.reason))
            continue
        num_records += 1
        flat = flat_config(record)
        base = flat if base is None else base
        stages.update({one.name for one in record.stages})
        swept.update(dict.fromkeys(map(_swept_key, record.overrides)))
        config = change(base, flat)
        run = _name(record.directory, above)
        entries.extend(_entry(record, run, one, config) for one in _wanted(record, stage))
    return Study(tuple(entries), base or {}, tuple(swept), stages, tuple(problems), num_records)


def flat_config(record: Record) -> dict[str, str]:
    """The flat config of a record, with `strategy`, `data`, `teacher` and `student` as plain names."""
    flat = flatten(
        {key: value for key, value in record.config.items() if key != "tracker"}
    )  # who follows a run
    for group in ("teacher", "student"):
        target = flat.get(f"{group}.name") or flat.get(f"{group}._target_")
        if target:
            flat.setdefault(group, intern(target.rpartition(".")[2]))
    if record.data.name:
        flat["data"] = intern(record.data.name)
    flat.setdefault("seed", canonical(record.seed))
    if record.strategy:
        flat["strategy"] = intern(record.strategy)
    return flat


def _wanted(record: Record, stage: str) -> list[StageRecord | None]:
    if stage == ALL and record.stages:
        return list(record.stages)
    return [record.final_stage if stage in (FINAL, ALL) else record.stage(stage)]


def _entry(record: Record, run: str, stage: StageRecord | None, config: Mapping[str, str]) -> Entry:
    hardware, teacher = record.hardware, record.teacher
    threads = (
        ""
        if hardware.num_threads is None
        else f"{hardware.num_threads:g} thread{'s' * (hardware.num_threads != 1)}"
    )
    parts = (hardware.device, hardware.gpu or hardware.cpu, threads)
    return Entry(
        run=run,
        path=record.path,
        stage=intern(stage.name) if stage else "",
        kind=intern(stage.kind or "") if stage else "",
        status=intern(record.status or "unknown"),
        strategy=intern(record.strategy or "unknown"),
        seed=record.seed,
        created=record.created or "",
        updated=record.updated or "",
        schema=record.schema,
        data=record.data.fingerprint and intern(record.data.fingerprint),
        test=record.data.test_fingerprint and intern(record.data.test_fingerprint),
        monitor=intern(record.task.monitor),
        score=intern(record.task.score),
        teacher=teacher.key if teacher else None,
        teacher_directory=teacher.directory if teacher else None,
        hardware=tuple(intern(part) for part in parts if part),
        error=record.error,
        search=record.search,
        problems=record.problems,
        numbers=_numbers(record, stage),
        config=config,
    )


def _numbers(record: Record, stage: StageRecord | None) -> dict[str, float]:
    """Flat names: metrics, sizes, `compression_KEY`, `latency_KEY` (ms), `factor_NAME`, times in seconds.

    `file_bytes` are those of model.ckd where the record has them, else of the folder; `model_bytes` those without the
    tokenizer, where there is one.
    """
    numbers: dict[str, float | None] = {"wall_seconds": record.wall_seconds}
    if stage is not None:
        numbers |= {**stage.metrics, **_smallest(stage.size)}
        if "tokenizer_bytes" in stage.size:
            numbers["model_bytes"] = stage.size["file_bytes"] - stage.size["tokenizer_bytes"]
        compression = _smallest(stage.compression)
        numbers |= {intern(f"compression_{key}"): value for key, value in compression.items()}
        teacher = record.teacher.size if record.teacher else None
        numbers |= {f"factor_{key}": value for key, value in factors(teacher, stage.size).items()}
        numbers |= {intern(f"latency_{key}"): value for key, value in stage.latency_ms.items()}
        numbers |= {"seconds": stage.seconds, "epochs": stage.epochs, "best_epoch": stage.best_epoch}
    judged = f"test_{record.task.monitor}"
    numbers[f"teacher_{judged}"] = record.teacher.metrics.get(judged) if record.teacher else None
    return {intern(key): value for key, value in numbers.items() if value is not None}


def _smallest(sizes: Mapping[str, float]) -> dict[str, float]:
    """Sizes in which the bytes of the file are those of the folder where a run of earlier versions has no other."""
    kept = {key: value for key, value in sizes.items() if key not in _PARTS}
    if "folder_bytes" in sizes:
        kept.setdefault("file_bytes", sizes["folder_bytes"])
    return kept


def _swept_key(override: str) -> str:
    return intern(override.partition("=")[0].lstrip("+~").partition("@")[0])


def _common_folder(paths: Sequence[Path]) -> str:
    """The folder that names of runs are relative to: above all runs, so that even a single one has a name."""
    folders = {os.path.dirname(os.path.abspath(path.parent)) for path in paths}
    return os.path.commonpath(folders) if folders else ""


def _name(directory: Path, above: str) -> str:
    """A run's name, safe to print anywhere: no control characters, no bytes that are no text."""
    name = os.fsencode(os.path.relpath(directory, above)).decode("utf-8", "backslashreplace")
    return name if name.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)


def seed_text(entry: Entry) -> str:
    """The seed as the config spells it."""
    return canonical(entry.seed)

"""One experiment: data, a teacher where one is needed, a student, a strategy; run into one directory."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskd import artifact, measure, tt
from compresskd.data.base import Data
from compresskd.distributed import active
from compresskd.distributed.launch import launched
from compresskd.engine.environment import git_revision, hardware, versions
from compresskd.engine.events import Listener, Pruned, log, shown
from compresskd.engine.memory import give_back
from compresskd.engine.strategy import TRAINING, Context, State, Strategy, metrics_of, store_predictions
from compresskd.engine.teacher import Teacher
from compresskd.measure import macs
from compresskd.run import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PRUNED,
    Lost,
    Record,
    Run,
    RunDirectoryError,
    check_remains,
    fingerprints,
    write_text,
)
from compresskd.run.ownership import LOG, MODEL
from compresskd.targets.stored_names import with_stored_targets
from compresskd.tasks import Inputs
from compresskd.training import Recipe, Scores
from compresskd.training.interrupt import deferred_interrupt
from compresskd.training.saved import read_training
from compresskd.training.teacher_targets import with_targets_of
from compresskd.trust import Signer, granted


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, built and checked.

    Attributes:
        student: makes the untrained student; called once a run.
        teacher: how to come by the teacher, or None where neither the strategy nor the student needs one.
        inherit: gives an untrained student, in place, what it has of the trained teacher; None where that is nothing.
        plan: where the plans of factorized layers come from, in training and at inference: 'fixed' or 'measured',
            see `compresskd.tt.execution.policy`.
        measure_latency: whether the models are timed.
        scores_test: whether models are scored on the test split; else on validation alone.
        search: what search the run is of, for the record; None of none.
        processes: how many work on it together; more than one need `config`, of which the others build it anew.
        config: the resolved configuration, for the record.
        overrides: what the user typed, for the record.
        trust: packages besides compresskd whose code the user lets the run execute.
        trackers: by name, who follows its runs besides the console; see `compresskd.listeners.tracker`.
    """

    data: Data
    student: Callable[[], nn.Module]
    strategy: Strategy
    recipe: Recipe
    seed: int
    device: torch.device
    teacher: Teacher | None = None
    inherit: Callable[[nn.Module, nn.Module], None] | None = None
    plan: str = tt.FIXED
    measure_latency: bool = True
    scores_test: bool = True
    search: Mapping[str, Any] | None = None
    processes: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    trackers: Mapping[str, Any] = field(default_factory=dict)

    def run(self, run: Run, reporter: Listener, texts: Mapping[str, str] | None = None) -> Record:
        """Run every stage that has not been run, and return the finished record.

        texts: files to keep in the run directory besides, by name.

        The record ends as finished, failed (with the traceback) or interrupted, whatever happens short of a
        kill: then it stays `running`, and can be resumed like the others.

        Raises:
            RunDirectoryError: the run to resume was begun on other data, or with another teacher, or what it left
                cannot be read; then nothing is changed.
            Lost: the directory was removed, or taken over, while the run was going on.
            ProcessLost: another process that worked on the run has ended.
        """
        if not active().leads:
            with tt.plans(self.plan):
                self._run(run, reporter, {*self.trust})
            return _record_of(run)
        self._check_remains(run)
        trust = {*self.trust, *(granted(run.directory, run.record) if run.record is not None else ())}
        run.sign = Signer(run.directory, trust, reporter.note)
        run.start(self._record())  # before any other file: it tells that the folder is a run's
        for name, text in (texts or {}).items():
            write_text(run.place(name), text)
        with _log_file(run.open_to_append(LOG)), tt.plans(self.plan):
            try:
                with _outcome(run), self._others(run, trust):
                    self._run(run, reporter, trust)
            finally:
                reporter.end(_record_of(run))
        return _record_of(run)

    def _others(self, run: Run, trust: set[str]) -> AbstractContextManager[Any]:
        """Start the processes that work on the run with this one, unless they do already: on what it is part of."""
        if active().world > 1:
            return nullcontext()
        order = {
            "directory": str(run.directory),
            "config": dict(self.config),
            "overrides": list(self.overrides),
            "trust": sorted(trust),
            "path": sys.path,
        }
        return launched(self.processes, order, self.device)

    def _check_remains(self, run: Run) -> None:
        if run.record is None:
            return
        check_remains(run.directory, run.record)
        read_training(run.directory / TRAINING)
        then = run.record.teacher
        if then is not None and self.teacher is not None and then.get("key") != self.teacher.key:
            raise _other_teacher(run, then.get("key"), self.teacher.key)

    def _run(self, run: Run, reporter: Listener, trust: set[str]) -> None:
        run.record, given = active().first(lambda: (run.record, trust))
        trust |= given
        torch.manual_seed(self.seed)
        self._record_devices(_record_of(run))
        reporter.begin(run.directory, _record_of(run))
        data = self.data.to(self.device)
        give_back()  # what the models of the checks before have left
        self._run_stages(data, run, reporter, trust)
        give_back()
        if active().leads:
            self._write_final(data, run, trust)

    def _record_devices(self, record: Record) -> None:
        devices = active().gathered(str(self.device))
        if len(devices) > 1:
            (record.resumed[-1] if record.resumed else record.hardware)["devices"] = devices

    def _write_final(self, data: Data, run: Run, trust: set[str]) -> None:
        record = _record_of(run)
        final = record.stage(record.final) or {}
        written = artifact.write_final(
            run.directory / final["checkpoint"],
            run.place(MODEL).parent,
            artifact.about_of(data),
            trust=sorted(trust),
        )
        record.model = {**written, "files": fingerprints(run.directory, MODEL)}

    def _run_stages(self, data: Data, run: Run, reporter: Listener, trust: set[str]) -> None:
        """Run the strategy. The models are this method's own: what comes after it has their memory."""
        student = self._fresh_student(reporter) if self.strategy.needs_student else None
        teacher, origin = (None, {}) if self.teacher is None else self.teacher.obtain(reporter)
        teacher = None if teacher is None else teacher.to(self.device)
        if student is not None:
            self._inherit(student, teacher)
        if teacher is not None:
            data = with_targets_of(teacher, data, batch_size=self.recipe.evaluation_batch_size)
        context = Context(
            data,
            run,
            self.recipe,
            self.seed,
            self.device,
            reporter,
            lambda: self._inherit(self.student().to(self.device), teacher),
            trust,
            measure_latency=self.measure_latency,
            scores_test=self.scores_test,
        )
        for model in (student, teacher):
            trust |= set() if model is None else {*artifact.packages(model)}
        if teacher is not None:
            self._record_teacher(teacher, origin, context)
        first = student or teacher
        assert first is not None  # a strategy that needs no student begins with the teacher
        begin = [State(first, teacher if self.strategy.needs_teacher else None)]
        del student, first  # a stage may give up what it is given
        self.strategy.run(begin.pop(), context)

    def _fresh_student(self, reporter: Listener) -> nn.Module:
        student = self.student().to(self.device)
        _tell_what_is_fresh(student, reporter)
        return student

    def _inherit(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        if self.inherit is not None and teacher is not None:
            self.inherit(student, teacher)
        return student

    def _record_teacher(self, teacher: nn.Module, origin: Mapping[str, Any], context: Context) -> None:
        """Score and measure the teacher, as each stage's student is."""
        if context.record.teacher is not None:
            _check_same_teacher(context.run, artifact.fingerprint(teacher))
            return
        scored = metrics_of("teacher", teacher, context)
        context.record.teacher = active().first(lambda: self._measured(teacher, origin, scored, context))
        context.run.save()
        unknown = context.record.teacher["macs_unknown"]
        if unknown:
            context.reporter.note(f"teacher: MACs unknown ({unknown})")
        context.reporter.note(f"teacher: {shown(context.record.monitor, scored[0])}")

    def _measured(
        self,
        teacher: nn.Module,
        origin: Mapping[str, Any],
        scored: tuple[dict[str, float], Scores | None],
        context: Context,
    ) -> dict[str, Any]:
        metrics, test = scored
        content = artifact.content_of(teacher, artifact.about_of(context.data), copy=False)
        if test is not None:
            if self.teacher is not None:
                self.teacher.check_score(test, context.data.test)
            store_predictions(context, "teacher", test)
        products = macs.count(teacher, context.example)
        return {
            **origin,
            "fingerprint": artifact.fingerprint(teacher),
            "metrics": metrics,
            "size": {
                "num_parameters": measure.num_parameters(teacher),
                "folder_bytes": artifact.bytes_of(teacher),
                **artifact.compact_sizes(content, trust=artifact.packages(teacher)),
                "macs": products.number,
            },
            "macs_unknown": products.unknown,
            "latency_ms": context.latency({"teacher": lambda: teacher}).get("teacher"),
        }

    def _record(self) -> Record:
        data = self.data
        return Record(
            strategy=self.strategy.name,
            config=with_stored_targets(self.config),
            overrides=list(self.overrides),
            seed=self.seed,
            processes=self.processes,
            versions=versions(),
            git=git_revision(),
            hardware=hardware(self.device),
            data={
                "name": data.name,
                "fingerprint": data.fingerprint,
                "batches_fingerprint": data.batches_fingerprint,
                "test_fingerprint": data.test.fingerprint,
                "num_train": len(data.train),
                "num_validation": len(data.validation),
                "num_test": len(data.test),
                **({"unlabelled": data.unlabelled_facts} if data.unlabelled else {}),
                **({"vocabulary": data.vocabulary.facts} if data.vocabulary else {}),
                "example_shape": _shapes(data.validation.example),
                "class_names": [str(name) for name in data.class_names],
                "notices": [asdict(notice) for notice in data.notices],
            },
            task=data.task.describe(),
            search=None if self.search is None else dict(self.search),
        )


def _shapes(inputs: Inputs) -> list[int] | dict[str, list[int]]:
    """Without the dimension of the batch."""
    if isinstance(inputs, torch.Tensor):
        return list(inputs.shape[1:])
    return {name: list(tensor.shape[1:]) for name, tensor in inputs.items()}


def _tell_what_is_fresh(student: nn.Module, reporter: Listener) -> None:
    names = getattr(student, "fresh_parameters", ())
    if names:
        reporter.note(
            f"student: {', '.join(names)} start at random: the weights of its folder have none that fit"
        )


def _check_same_teacher(run: Run, fingerprint: str) -> None:
    then = (_record_of(run).teacher or {}).get("fingerprint")
    if then != fingerprint:
        raise _other_teacher(run, then, fingerprint)


def _other_teacher(run: Run, then: str | None, now: str | None) -> RunDirectoryError:
    return RunDirectoryError(
        f"{run.directory} was begun with another teacher ({then} then, {now} now); "
        "put the teacher back as it was, or write another hydra.run.dir=DIR"
    )


def _record_of(run: Run) -> Record:
    if run.record is None:
        raise RuntimeError("the run has not been started")
    return run.record


@contextmanager
def _outcome(run: Run):
    """Write into the record how the block ended. A Ctrl-C while that is written is a Ctrl-C too many."""
    record = _record_of(run)
    try:
        yield
    except KeyboardInterrupt:
        record.status = INTERRUPTED
        with deferred_interrupt():
            _save_if_possible(run)
        raise
    except BaseException as error:
        record.status = PRUNED if isinstance(error, Pruned) else FAILED
        record.error = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        with deferred_interrupt():
            _save_if_possible(run)
        raise
    record.status = FINISHED
    with deferred_interrupt():
        run.save()


def _save_if_possible(run: Run) -> None:
    """Write the record of what went wrong; where that cannot be written either (a full disk), say so."""
    try:
        run.save()
    except OSError as error:
        log.error("record.json could not be written: %s", error.strerror or error)
    except (Lost, RunDirectoryError):
        pass  # it is no longer ours to write; where that is what went wrong, it is told already


@contextmanager
def _log_file(path: Path):
    level = log.level
    if not log.isEnabledFor(logging.INFO):  # nobody has configured logging: the package is used as a library
        log.setLevel(logging.INFO)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()

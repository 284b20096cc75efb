"""What each verb does with its arguments; what it needs is imported when it is called."""

from __future__ import annotations

import re
from argparse import Namespace

from compresskd.cli.endings import FAILURE, USAGE_ERROR, complain
from compresskd.run import FINISHED, RECORD, AlreadyFinished, RunDirectoryError, read_record
from compresskd.trust import granted, trusted_packages

SEARCH = "search.json"


def run(arguments: Namespace) -> int:
    """Run what the configuration says, or show it."""
    from compresskd.cli import jobs

    return jobs.run_hydra(arguments)


def search(arguments: Namespace) -> int:
    """Look for the best values of keys."""
    from compresskd.cli import search

    return search.run(arguments)


def goal(arguments: Namespace) -> int:
    """Look for what meets a goal."""
    from compresskd.cli import goal

    return goal.run(arguments)


def resume(arguments: Namespace) -> int:
    """Continue a run, or a search, in its directory."""
    directory, changes = arguments.directory, " ".join(arguments.changes)
    number = re.fullmatch(r"processes=(\d{1,9})", changes)
    if changes and number is None:
        complain(
            f"resume: got {changes}; a run resumes as it was begun, but for its number of processes; write compresskd "
            f"resume {directory}, or begin another run with the change"
        )
        return USAGE_ERROR
    said = trusted_packages(arguments.trust)
    if (directory / SEARCH).exists() and not (directory / RECORD).exists():
        from compresskd.cli import search

        return search.resume(directory, said)
    record = read_record(directory)
    if record.status == FINISHED:
        raise AlreadyFinished(f"{directory} is finished; there is nothing to resume")
    from compresskd.cli.execute import execute
    from compresskd.config.recorded import build_recorded, usable

    trust = granted(directory, record, said)
    config = record.config if number is None else record.config | {"processes": int(number[1])}
    with usable(directory):
        experiment = build_recorded(config, record.overrides, trust=trust)
    execute(experiment, directory, unique=False)
    return 0


def repeat(arguments: Namespace) -> int:
    """Run a record again, and compare."""
    from compresskd.cli import repeat

    return repeat.repeat(arguments.directory, arguments.into, trusted_packages(arguments.trust))


def evaluate(arguments: Namespace) -> int:
    """Score a stored model on the run's data, or on others."""
    directory = arguments.directory
    changes = [word for word in arguments.words if "=" in word]
    stage, *more = [word for word in arguments.words if "=" not in word] or [None]
    if more:
        raise RunDirectoryError(
            f"evaluate: got the stages {stage} {' '.join(map(str, more))}; write one of them"
        )
    said, record = trusted_packages(arguments.trust), read_record(directory)
    from compresskd.config.recorded import data_of, usable
    from compresskd.reports.evaluate import evaluate_run

    trust = granted(directory, record, said)
    with usable(directory):
        data = data_of(record.config, changes, trust=trust, config_dirs=arguments.config_dir)
    verdict = evaluate_run(directory, record, data, stage=stage, trust=trust)
    print(verdict)
    return FAILURE if verdict.reproduced is False else 0


def compare(arguments: Namespace) -> int:
    """Tables of many records."""
    from compresskd.compare import command

    return command.run(arguments)


def watch(arguments: Namespace) -> int:
    """A live table of runs."""
    from compresskd.status import watch

    return watch.run(arguments.directories, once=arguments.once, every=arguments.every)


def ls(arguments: Namespace) -> int:
    """Runs that fit conditions."""
    from compresskd.status import listing

    return listing.run(arguments)


def track(arguments: Namespace) -> int:
    """Send runs to trackers."""
    from compresskd.cli import track

    return track.run(arguments)


def plan(arguments: Namespace) -> int:
    """What a command would do."""
    from compresskd.config.build import build_jobs
    from compresskd.config.compose import compose_jobs
    from compresskd.reports.plan import plan, show

    jobs = compose_jobs(arguments.words, config_dirs=arguments.config_dir).jobs
    for job, experiment in zip(jobs, build_jobs(jobs), strict=True):
        print(f"{job.name}\n{show(plan(experiment))}" if len(jobs) > 1 else show(plan(experiment)))
    return 0


def predict(arguments: Namespace) -> int:
    """What a model says of the samples in a file."""
    import sys

    from compresskd.artifact import load
    from compresskd.reports.predict import predict, write_rows
    from compresskd.run.files import atomic

    out = arguments.out
    if out is not None and out.exists():
        raise RunDirectoryError(f"{out} is there already; write another --out")
    trust = trusted_packages(arguments.trust)
    model = load(arguments.directory, trust=trust)
    preprocess = getattr(model, "preprocess", None)  # not there where the file says nothing of its data
    rows = predict(
        model, preprocess.about if preprocess else {}, arguments.file, batch_size=arguments.batch_size
    )
    if out is None:
        write_rows(rows, sys.stdout)
        return 0
    with atomic(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        count = write_rows(rows, file, as_json=out.suffix in (".jsonl", ".json"))
    print(f"{count:,} predictions are in {out}")
    return 0


def export(arguments: Namespace) -> int:
    """A model in another form."""
    from compresskd.cli import export

    return export.run(arguments)


def bench(arguments: Namespace) -> int:
    """Latencies of factorized layers."""
    from compresskd.reports import bench

    try:
        return bench.run(arguments)
    except bench.BenchError as error:
        complain(str(error))
        return USAGE_ERROR


def completion(arguments: Namespace) -> int:
    """What a shell puts in at TAB."""
    from compresskd.cli import completion

    return completion.run(arguments)

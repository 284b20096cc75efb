"""The command line: a first bare word is a verb of ours, everything else is Hydra's."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from compresskd.cli.endings import (
    FAILURE,
    INTERRUPT,
    USAGE_ERROR,
    complain,
    describe,
    is_usage_error,
    outlive_the_reader,
)
from compresskd.cli.execute import execute
from compresskd.cli.jobs import run_hydra
from compresskd.run import FINISHED, AlreadyFinished, read_record
from compresskd.targets.paths import search_here_last
from compresskd.trust import granted, take_trust
from compresskd.version import __version__


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        os.getcwd()
    except FileNotFoundError:
        complain("the working directory is not there any more; change to one that is")
        sys.exit(USAGE_ERROR)
    search_here_last()
    outlive_the_reader()
    verbose = "--verbose" in arguments
    arguments = [a for a in arguments if a != "--verbose"]
    try:
        status = _dispatch(arguments)
    except KeyboardInterrupt as error:
        complain(str(error) or "interrupted")
        status = INTERRUPT
    except Exception as error:
        if verbose:
            traceback.print_exc()
        complain(describe(error))
        status = USAGE_ERROR if is_usage_error(error) else FAILURE
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in VERBS:
        return VERBS[first](arguments[1:])
    if first and first[0] not in "-+~" and "=" not in first:
        return _unknown_verb(first)
    if "--version" in arguments:
        print(f"compresskd {__version__}")
        return 0
    return run_hydra(arguments)


def _unknown_verb(word: str) -> int:
    from compresskd.config.faults import nearest

    complain(
        f"'{word}' is no verb and no override{nearest(word, VERBS)}; an override is written key=value, "
        "and --help shows the keys"
    )
    return USAGE_ERROR


def _compare(arguments: list[str]) -> int:
    from compresskd import compare

    return compare.main(arguments)


_RESUME = """usage: compresskd resume DIR [--trust PACKAGE ...]

Go on with the run in DIR where it stopped. A run that somebody else began, or whose record or code was changed since,
executes code outside of compresskd only where --trust names its package."""


def _resume(arguments: list[str]) -> int:
    arguments, said = take_trust(arguments)
    changes = [a for a in arguments[1:] if "=" in a or a[:1] in "+~"]
    if changes:
        complain(
            f"resume: got {' '.join(changes)}; a run resumes as it was begun; write compresskd resume {arguments[0]}, "
            "or begin another run with the change"
        )
        return USAGE_ERROR
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(_RESUME)
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    directory = Path(arguments[0])
    record = read_record(directory)
    if record.status == FINISHED:
        raise AlreadyFinished(f"{directory} is finished; there is nothing to resume")
    from compresskd.config.build import build_recorded
    from compresskd.config.usable import usable

    trust = granted(directory, record, said)
    with usable(directory):
        experiment = build_recorded(record.config, record.overrides, trust=trust)
    execute(experiment, directory, unique=False)
    return 0


_REPEAT = """usage: compresskd repeat DIR [--into DIR2] [--trust PACKAGE ...]

Run the configuration of the finished run in DIR again from scratch, its teacher too (unless that came from given
weights), into DIR2 (DIR_repeat), which must not be there yet; and say what of status, epochs, metrics, ranks, sizes,
predictions and model.ckd is equal. Exit code 1 where anything differs. Code outside of compresskd runs where the run is
your own and unchanged, or where --trust names its package."""


def _repeat(arguments: list[str]) -> int:
    arguments, said = take_trust(arguments)
    names, into = list(arguments), None
    if "--into" in names[:-1]:
        at = names.index("--into")
        into, names = Path(names[at + 1]), names[:at] + names[at + 2 :]
    if len(names) != 1 or names[0].startswith("-"):
        print(_REPEAT)
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    from compresskd.cli.repeat import repeat

    return repeat(Path(names[0]), into, said)


def _bench(arguments: list[str]) -> int:
    from compresskd.reports import bench

    try:
        return bench.main(arguments)
    except bench.BenchError as error:
        complain(str(error))
        return USAGE_ERROR


def _export(arguments: list[str]) -> int:
    from compresskd.cli import export

    return export.main(arguments)


_EVALUATE = """usage: compresskd evaluate DIR [STAGE] [data=NAME] [data.KEY=VALUE ...] [--trust PACKAGE ...]

Score the model of a finished stage (the last one) again on the test split, and say whether the recorded accuracy is
reproduced; or score it on other data. Exit code 1 where it is not reproduced. Code outside of compresskd runs where
the run is your own and unchanged, or where --trust names its package."""


def _evaluate(arguments: list[str]) -> int:
    arguments, said = take_trust(arguments)
    about_data = [a for a in arguments if a.startswith(("data=", "data."))]
    names = [a for a in arguments if a not in about_data]
    # a job's folder may have an '=' in its name, a stage may not: what else has one is refused as an override
    changes = about_data + [a for a in names[1:] if "=" in a]
    names = [a for a in names if a not in changes]
    if not 1 <= len(names) <= 2 or names[0].startswith("-"):
        print(_EVALUATE)
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    directory, stage = Path(names[0]), (names[1:] or [None])[0]
    record = read_record(directory)
    from compresskd.config.recorded import data_of
    from compresskd.config.schema import register
    from compresskd.config.usable import usable
    from compresskd.reports.evaluate import evaluate_run

    register()
    trust = granted(directory, record, said)
    with usable(directory):
        data = data_of(record.config, changes, trust=trust)
    verdict = evaluate_run(directory, record, data, stage=stage, trust=trust)
    print(verdict)
    return FAILURE if verdict.reproduced is False else 0


# The first word of a command line that is not Hydra's; each takes the other words and returns the exit code.
VERBS: dict[str, Callable[[list[str]], int]] = {
    "resume": _resume,
    "repeat": _repeat,
    "compare": _compare,
    "evaluate": _evaluate,
    "bench": _bench,
    "export": _export,
}

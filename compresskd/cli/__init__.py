"""The command line: the first argument is a verb, or everything is of the verb `run`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from compresskd.cli import follow, parser
from compresskd.cli.endings import (
    FAILURE,
    INTERRUPT,
    USAGE_ERROR,
    complain,
    describe,
    end_at_once,
    is_usage_error,
    outlive_the_reader,
)
from compresskd.cli.threads import wait_briefly
from compresskd.targets.paths import search_here_last

_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns 0, 1 (failed), 2 (bad input), 3 (a goal not met) or 130 (Ctrl-C)."""
    try:
        os.getcwd()
    except FileNotFoundError:
        complain("the working directory is not there any more; change to one that is")
        return USAGE_ERROR
    search_here_last()
    wait_briefly()
    end_at_once()
    outlive_the_reader()
    if follow.is_one_of_several() and follow.follows():
        return follow.follow()
    given, arguments = parser.common().parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        with follow.leading() if follow.is_one_of_several() else nullcontext():
            return _dispatch(arguments)
    except SystemExit as ended:  # argparse's: 0 after help, 2 after an error
        return int(ended.code or 0)
    except KeyboardInterrupt as error:
        complain(str(error) or "interrupted")
        return INTERRUPT
    except Exception as error:
        if given.verbose:
            traceback.print_exc()
        complain(describe(error))
        return USAGE_ERROR if is_usage_error(error) else FAILURE


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in parser.VERBS:
        verb, typed = first, arguments[1:]
    elif first and first[0] not in "-+~" and "=" not in first:
        return _unknown_verb(first)
    elif first in (*_HELP, "--version"):
        verb, typed = None, [first]
    else:
        verb, typed = parser.RUN, arguments
    if verb == parser.RUN and any(each.startswith(f"{parser.GOAL}=") for each in typed):
        verb = parser.GOAL  # the words of a goal are no overrides: Hydra does not see them
    parsed = parser.parse(verb, typed)
    return parsed.call(parsed)


def _unknown_verb(word: str) -> int:
    from compresskd.options import nearest

    complain(
        f"'{word}' is no verb and no override{nearest(word, parser.VERBS)}; an override is written key=value, "
        "and --help shows the keys"
    )
    return USAGE_ERROR

"""The command line of `compresskd compare`, and the comparison at the end of a sweep."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from compresskd.compare import output, tables, tabular, terminal
from compresskd.compare.comparison import Comparison, Options, compare
from compresskd.compare.factors import factor_table
from compresskd.compare.keys import UnknownKeyError
from compresskd.compare.markdown import markdown
from compresskd.compare.pairing import PairedTests, against_reference
from compresskd.compare.study import ALL, Study, load

TITLE = "Comparison of runs"
_EPILOG = """examples:
  compresskd compare outputs/2026-11-23                everything of one day
  compresskd compare outputs/* --by strategy,rank      group by these keys only
  compresskd compare outputs/x --metric validation_accuracy --sort file_bytes
  compresskd compare outputs/x --reference strategy=distill,rank=16

Runs that are equal in all but their seed form a group. Keys may be shortened to
their end (alpha for kd.alpha). Exit code: 0 if anything was compared, 1 if
nothing was, 2 for a wrong command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `compresskd compare` with these arguments; returns the exit code."""
    parser = argparse.ArgumentParser(prog="compresskd compare", allow_abbrev=False)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except SystemExit as stop:  # argparse's own: 0 after --help, 2 after an error
        return int(stop.code or 0)


def run(arguments: argparse.Namespace) -> int:
    """Compare as parsed arguments say; returns the exit code."""
    try:
        files = {kind: Path(path) for kind in output.MARKS if (path := getattr(arguments, kind))}
        _distinct(files)
        for kind, path in files.items():
            output.check(path, kind, arguments.force)
        return _run(arguments, files)
    except (UnknownKeyError, output.OutputError) as error:
        print(f"compresskd compare: error: {error}", file=sys.stderr)  # noqa: T201 - this is a command line
        return 2


def _run(arguments: argparse.Namespace, files: dict[str, Path]) -> int:
    study = load(arguments.dirs, arguments.stage)
    _say(_problems(study), sys.stderr)
    if not study.entries:
        _say("Nothing to compare: no record was read.", sys.stderr)
        return 1
    comparison = compare(study, _options(arguments))
    tests = against_reference(comparison)
    shown = _terminal_tables(comparison, tests, arguments.rows)
    width, colour = terminal.width_of(sys.stdout), sys.stdout.isatty()
    text = terminal.render(_head(comparison), shown, max_rows=arguments.rows, width=width, colour=colour)
    for kind, path in files.items():
        output.write(path, _WRITERS[kind](comparison, tests, TITLE, ()))
    try:
        _say([text.rstrip("\n"), *(f"Wrote {path}" for path in files.values())], sys.stdout)
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # the reader of the pipe (head, less) has seen enough; Python must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def summarize_sweep(directory: Path) -> str | None:
    """Write compare.html, compare.csv and compare.md into a sweep's folder; returns the table to print.

    Files of these names that compare did not write are left alone, and a folder that cannot be written
    costs the files only: the text says so. None when the folder holds no record.
    """
    directory = Path(directory)
    study = load([directory])
    if not study.entries:
        return None
    comparison = compare(study, Options())
    tests = against_reference(comparison)
    shown = _terminal_tables(comparison, tests, 40)
    width = terminal.width_of(sys.stdout)
    lines = [terminal.render(_head(comparison), shown, max_rows=40, width=width, colour=False).rstrip("\n")]
    lines += [*_problems(study), *_write_files(directory, comparison, tests)]
    return "\n".join(lines) + "\n"


def report_search(directory: Path, metric: str, title: str, table: tables.Table) -> list[str]:
    """Write the comparison of a search's trials by a metric of validation, its own table first, into its folder;
    returns what is to be said of it, as of `summarize_sweep`.
    """
    study = load([directory])
    if not study.entries:
        return []
    known = any(metric in entry.numbers for entry in study.entries)
    comparison = compare(study, Options(metrics=(metric,) if known else ()))
    return _write_files(directory, comparison, against_reference(comparison), title, (table,))


def _write_files(
    directory: Path,
    comparison: Comparison,
    tests: PairedTests,
    title: str = TITLE,
    first: Sequence[tables.Table] = (),
) -> list[str]:
    lines = []
    for kind, suffix in (("html", "html"), ("csv", "csv"), ("markdown", "md")):
        path = directory / f"compare.{suffix}"
        try:
            output.check_own(path, kind)
            output.write(path, _WRITERS[kind](comparison, tests, title, first))
            lines.append(f"Wrote {path}")
        except output.OutputError as error:
            lines.append(f"Not written: {error}")
    return lines


def _html(comparison: Comparison, tests: PairedTests, title: str, first: Sequence[tables.Table]) -> str:
    from compresskd.compare.report import html  # the one large part that most calls do without

    return html(title, _head(comparison), comparison, tests, first)


def _markdown(comparison: Comparison, tests: PairedTests, title: str, first: Sequence[tables.Table]) -> str:
    shown = [
        *first,
        tables.group_table(comparison, tests, every_number=True),
        factor_table(comparison),
        tables.paired_table(comparison, tests),
        tables.difference_table(comparison),
        tables.flag_table(comparison),
        tables.problem_table(comparison),
    ]
    return markdown(title, _head(comparison), shown)


_WRITERS: dict[str, Callable[[Comparison, PairedTests, str, Sequence[tables.Table]], str]] = {
    "html": _html,
    "csv": lambda comparison, *_: tabular.csv_text(comparison),
    "markdown": _markdown,
    "json": lambda comparison, tests, *_: tabular.json_text(comparison, tests),
}


def _head(comparison: Comparison) -> list[str]:
    """The lines above the tables: how much was read, in which state, what the marks mean."""
    study = comparison.study
    states = Counter(entry.status for entry in study.entries)
    text = ", ".join(f"{number} {state}" for state, number in states.most_common())
    noun = "stage" if comparison.options.stage == ALL else "record"
    lines = [f"{_count(len(study.entries), noun)} ({text}) in {_count(len(comparison.groups), 'group')}."]
    if any(group.fronts for group in comparison.groups):
        costs = {"B": "bytes", "M": "MACs", "L": (comparison.latency or "latency").replace("_", " ")}
        lines.append(
            f"★: on the Pareto front of {comparison.metric.replace('_', ' ')} against "
            + ", ".join(f"{letter} {name}" for letter, name in costs.items())
            + "."
        )
    return [*lines, *comparison.notes]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _terminal_tables(comparison: Comparison, tests: PairedTests, rows: int) -> list[tables.Table]:
    flags = tables.flag_table(comparison)
    if rows and len(flags.rows) > min(rows, 15):
        flags = _flag_counts(comparison)
    results = tables.group_table(comparison, tests)
    paired = tables.without(tables.paired_table(comparison, tests), "McNemar per seed")
    return [results, factor_table(comparison), paired, flags]


def _flag_counts(comparison: Comparison) -> tables.Table:
    found = Counter(flag.code for flags in comparison.flags for flag in flags)
    example = {flag.code: flag.text for flags in reversed(comparison.flags) for flag in flags}
    rows = tuple(
        (tables.Cell(code, None, "warning"), tables.Cell(str(n)), tables.Cell(example[code]))
        for code, n in found.most_common()
    )
    columns = (tables.Column("flag"), tables.Column("records", True), tables.Column("for example"))
    return tables.Table("Flags", columns, rows)


def _problems(study: Study, shown: int = 10) -> list[str]:
    """One line a path that was not read; of many the first ones and the number by reason."""
    lines = [f"Not read: {terminal.printable(str(p.path))}: {p.reason}" for p in study.problems[:shown]]
    rest = Counter(problem.reason.partition(":")[0] for problem in study.problems[shown:])
    if rest:
        total = ", ".join(f"{number} {reason}" for reason, number in rest.most_common(5))
        lines.append(f"Not read: {sum(rest.values())} further paths ({total})")
    return lines


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        by=arguments.by,
        metrics=arguments.metric,
        sort=arguments.sort,
        reverse=arguments.reverse,
        stage=arguments.stage,
        reference=arguments.reference,
    )


def _say(text: str | Sequence[str], stream) -> None:
    lines = [text] if isinstance(text, str) else text
    for line in lines:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _distinct(files: dict[str, Path]) -> None:
    seen: dict[Path, str] = {}
    for kind, path in files.items():
        other = seen.setdefault(path.absolute(), kind)
        if other != kind:
            raise output.OutputError(f"--{other} and --{kind} both name {path}: give each its own file")


def _list(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError("expected one or several names, separated by commas")
    return names


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 for all rows; got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dirs", nargs="+", type=Path, metavar="DIR", help="searched at any depth; a record.json is fine too")
    add("--by", type=_list, metavar="KEY,...", help="group by these config keys instead of all that differ")
    add(
        "--metric",
        type=_list,
        default=(),
        metavar="NAME,...",
        help="numbers to show; the first one decides (default: the metric that selects, on test)",
    )
    add("--sort", metavar="KEY", help="a shown key, any number, or n (default: the metric, best first)")
    add("--reverse", action="store_true", help="turn the order round")
    add("--stage", default="final", metavar="NAME", help="a stage's name, all, or final (default)")
    add(
        "--reference",
        metavar="GROUP",
        help="what the others are tested against: best, baseline (strategy=train), or KEY=VALUE,... "
        "(default: the baseline where there is one, else the best)",
    )
    add(
        "--rows",
        type=_whole_number,
        default=40,
        metavar="N",
        help="rows shown on the terminal; 0: all (default: 40)",
    )
    add("--html", metavar="FILE", help="write the whole report, one self-contained file")
    add("--csv", metavar="FILE", help="write one line a run")
    add("--markdown", metavar="FILE", help="write the tables as Markdown")
    add("--json", metavar="FILE", help="write everything as JSON")
    add("--force", action="store_true", help="overwrite such files even if compare did not write them")

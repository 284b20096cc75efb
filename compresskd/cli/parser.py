"""The command line's grammar: one parser with a subcommand for each verb. Importing it loads no torch, nor Hydra."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.cli import verbs
from compresskd.trust import HELP
from compresskd.version import __version__

RUN, GOAL = "run", "goal"
FORMS = ("onnx", "pt2", "dense", "huggingface")  # of `compresskd.export`
_WIDTH = 80
_SHOWN = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # by Hydra
_USAGE = "compresskd [run] [FLAG ...] [GROUP=NAME ...] [KEY=VALUE ...]"
_EXAMPLES = """\
examples:
  compresskd strategy=distill_then_compress rank=16         one run
  compresskd strategy=distill_then_compress rank=16 bits=4  quantized as well
  compresskd -m strategy=distill_then_compress rank=4,8,16  a sweep
  compresskd experiment=compare_strategies rank=8           a whole study
  compresskd compare outputs/sweeps/*                       its runs compared

compresskd VERB --help tells more of a verb, compresskd run --help lists every
group and key."""
_RUN = """\
Train, distil, compress and quantize as the configuration says. GROUP=NAME
chooses a part, KEY=VALUE sets an option of it, dotted: kd.alpha=0.5. With -m a
list of values, rank=4,8,16, stands for one job of each."""

Add = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class Verb:
    """One subcommand.

    Attributes:
        summary: a line of the list of verbs.
        text: what its own help says.
        arguments: adds its arguments to its parser.
        call: does it; returns the exit code.
    """

    summary: str
    text: str
    arguments: Add
    call: Callable[[argparse.Namespace], int]


def common() -> argparse.ArgumentParser:
    """What every verb takes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", action="store_true", help="show where an error comes from")
    return parser


def parse(chosen: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a verb, of none its list; help, version and faults end in SystemExit, as argparse has it.

    Only the verb that is chosen gets its arguments, so that nothing of the others is loaded.
    """
    whole = _made(
        argparse.ArgumentParser,
        prog="compresskd",
        usage=f"{_USAGE}\n       compresskd VERB ...",
        description="Small neural networks by distillation, tensor trains and quantization.",
        epilog=_EXAMPLES,
    )
    whole.add_argument("--version", action="version", version=f"compresskd {__version__}")
    added = whole.add_subparsers(title="verbs", metavar="VERB ARGUMENT", prog="compresskd")
    for name, verb in VERBS.items():
        own = _made(added.add_parser, name, help=verb.summary, description=verb.text)
        own.set_defaults(call=verb.call, typed=arguments)
        if name == chosen:
            verb.arguments(own)
            return own.parse_intermixed_args(arguments)  # flags may stand between an argument and the next
    return whole.parse_args(arguments)


def _made(
    make: Callable[..., argparse.ArgumentParser], *names: str, **options: object
) -> argparse.ArgumentParser:
    """A parser in the one style that all have."""
    style = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "parents": [common()],
    }
    return make(*names, **style, **options)


def _directory(parser: argparse.ArgumentParser, what: str = "of a run") -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help=what)


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=HELP)


def _of_run(parser: argparse.ArgumentParser) -> None:
    """Hydra's flags, which are read ahead of Hydra; help shows those that matter here."""
    parser.usage = _USAGE
    add = parser.add_argument
    add("overrides", nargs="*", help=argparse.SUPPRESS)
    add("-m", "--multirun", action="store_true", help="one job for each combination of values")
    add("-cd", "--config-dir", metavar="DIR", help="your own groups and options, beside the shipped ones")
    add("-cn", "--config-name", metavar="NAME", help="another primary configuration")
    add(
        "-c", "--cfg", choices=("job", "hydra", "all"), help="show the composed configuration, and do not run"
    )
    add("--hydra-help", action="store_true", help="the flags and keys of Hydra")
    for names in (("--resolve",), ("-r", "--run"), ("-sc", "--shell-completion")):
        add(*names, action="store_true", help=argparse.SUPPRESS)
    for names in (("-p", "--package"), ("-cp", "--config-path"), ("--experimental-rerun",)):
        add(*names, help=argparse.SUPPRESS)
    add("-i", "--info", nargs="?", const="all", choices=_SHOWN, help=argparse.SUPPRESS)
    parser.epilog = "\n".join(_shipped())


def _shipped() -> Iterator[str]:
    """The groups and the top-level keys of the shipped configuration, for help."""
    from compresskd.config.shipped import conf_dir

    yield "groups:"
    for folder in sorted({path.parent for path in conf_dir().rglob("*/*.yaml")}):
        group = folder.relative_to(conf_dir()).as_posix()
        names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        title = "teacher, student" if group == "model" else group
        yield from textwrap.wrap(f"{title}: {names}", _WIDTH, initial_indent="  ", subsequent_indent="      ")
    yield "\nkeys, beside those of each group (compresskd --cfg job shows all):"
    keys = (conf_dir() / "config.yaml").read_text(encoding="utf-8").partition("\noutputs_dir:")
    for line in f"outputs_dir:{keys[2]}".partition("\nhydra:")[0].splitlines():
        key, _, why = line.partition("#")
        first, *more = textwrap.wrap(why, _WIDTH - 28) or [""]
        yield f"  {key.rstrip():<26}{first}".rstrip()
        yield from (f"{'':<28}{rest}" for rest in more)


def _of_resume(parser: argparse.ArgumentParser) -> None:
    _directory(parser)
    parser.add_argument(
        "changes", nargs="*", default=[], help=argparse.SUPPRESS
    )  # which are refused, with a reason
    _trust(parser)


def _of_repeat(parser: argparse.ArgumentParser) -> None:
    _directory(parser, "of a finished run")
    parser.add_argument("--into", type=Path, metavar="DIR2", help="where to run (default: DIR_repeat)")
    _trust(parser)


def _of_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd evaluate [FLAG ...] DIR [STAGE] [data.KEY=VALUE ...]"
    _directory(parser)
    parser.add_argument("words", nargs="*", metavar="STAGE, data.KEY=VALUE", help="the stage (default: the last "
                        "one); other data to score on")  # fmt: skip
    parser.add_argument("--config-dir", action="append", type=Path, default=[], metavar="DIR", help="where "
                        "data=NAME of your own is described")  # fmt: skip
    _trust(parser)


def _of_compare(parser: argparse.ArgumentParser) -> None:
    from compresskd.compare import command

    command.add_arguments(parser)


def _of_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _directory(parser, "run directory, folder of a model, or .ckd file")
    add("--to", required=True, choices=FORMS, help="the form")
    add(
        "--out", type=Path, help="file (of dense and huggingface: folder) to write; default: beside the model"
    )
    add("--overwrite", action="store_true", help="replace what is at --out")
    add("--check-samples", type=_count, default=256, metavar="N", help="samples to compare on (default 256)")
    _trust(parser)


def _of_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _directory(parser, "run directory, folder of a model, or .ckd file")
    add("file", type=Path, metavar="FILE", help="an image or a folder of them; a text file, one text a line; or a "
        "csv, parquet or json lines file with the columns of the training data")  # fmt: skip
    add("--out", type=Path, help="file to write, .csv or .jsonl (default: print csv)")
    add("--batch-size", type=_count, default=32, metavar="N", help="samples at once (default 32)")
    _trust(parser)


def _of_track(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd track DIR ... --to NAME[,NAME] [tracker.NAME.KEY=VALUE ...]"
    add = parser.add_argument
    add("words", nargs="+", metavar="DIR, KEY=VALUE", help="runs, searched at any depth; options of trackers")
    add("--to", required=True, metavar="NAME,...", help="trackers: tensorboard, mlflow, wandb, or your own")
    add("--config-dir", action="append", type=Path, default=[], metavar="DIR", help="where trackers of your own are "
        "described")  # fmt: skip


def _of_plan(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd plan [--config-dir DIR] [GROUP=NAME ...] [KEY=VALUE ...]"
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as of a run")
    parser.add_argument("--config-dir", action="append", type=Path, default=[], metavar="DIR", help="your own groups "
                        "and options")  # fmt: skip


def _of_watch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="of runs, sweeps or searches; may not be there yet",
    )
    add(
        "--once",
        action="store_true",
        help="print the table once, with all runs (so too where there is no terminal)",
    )
    add("--every", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (default 2)")


def _of_ls(parser: argparse.ArgumentParser) -> None:
    from compresskd.status import listing

    listing.add_arguments(parser)


def _of_completion(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd completion bash|zsh|fish"
    parser.add_argument(
        "shell", choices=("bash", "zsh", "fish", "words"), metavar="SHELL", help="whose script is printed"
    )
    parser.add_argument(
        "line", nargs="?", help=argparse.SUPPRESS
    )  # up to the cursor, which the scripts ask about


def _of_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "directory", nargs="?", type=Path, metavar="DIR", help="a finished run: each of its factorized layers"
    )
    add("--layer", metavar="MxN", help="instead of a run: a linear layer of M outputs and N inputs")
    add("--rank", type=int, default=32, help="largest TT-rank of --layer (default 32)")
    add("--cores", type=int, help="number of cores of --layer (default: the search chooses)")
    add("--batch", default="1,32,256", help="batch sizes (default 1,32,256)")
    add("--plans", type=int, default=3, help="plans shown beside the one that is picked (default 3)")
    add("--threads", type=int, help="of torch")
    _trust(parser)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, 0.1 to 3600, got {text!r}")
    return seconds


class _Objective(argparse.Action):
    """--maximize and --minimize go to one list, in the order in which they were typed."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        found = [*getattr(namespace, self.dest), (str(option).removeprefix("--"), values)]
        setattr(namespace, self.dest, found)


def _of_search(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd search [FLAG ...] KEY=RANGE ... [KEY=VALUE ...]"
    parser.epilog = _SEARCH_EXAMPLES
    add = parser.add_argument
    add("words", nargs="*", metavar="KEY=RANGE", help="int(LOW,HIGH), int(LOW,HIGH,STEP), int(LOW,HIGH,log), "
        "float(...) likewise, log(LOW,HIGH), choice(A,B,...); other arguments are as of a run")  # fmt: skip
    for way in ("maximize", "minimize"):
        add(f"--{way}", action=_Objective, dest="objectives", default=[], metavar="NAME", help="a metric of "
            "validation by its name, bytes, parameters, macs, latency; several are allowed (default: the metric that "
            "selects)")  # fmt: skip
    add("--where", action="append", default=[], metavar="BOUND", help="what the chosen point keeps: 'bytes<=50000', "
        "'accuracy>=95', 'accuracy>=-1.0' (points from the teacher), 'perplexity<=+2%%'")  # fmt: skip
    _budget(parser)
    add(
        "--epochs", type=_count, metavar="E", help="of each training of a trial; the chosen point has its own"
    )
    add("--warm-start", type=Path, action="append", default=[], metavar="DIR", help="finished runs that are points "
        "of the space count as tried")  # fmt: skip
    add(
        "--then",
        type=_count,
        default=0,
        metavar="N",
        help="run the chosen point again on N seeds, and score the test",
    )
    add("--seed", type=_whole, default=0, metavar="N", help="of the choice of points (default 0)")


def _of_goal(parser: argparse.ArgumentParser) -> None:
    parser.usage = "compresskd goal goal='NAME>=NUMBER' [minimize=NAME] [FLAG ...] ..."
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="goal=, minimize=, maximize=; the rest is as "
                        "of a run, and is not searched")  # fmt: skip
    _budget(parser)


def _budget(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--trials", type=_count, metavar="N", help="trials in all (default 40, of a goal 24)")
    add("--minutes", type=_positive, metavar="M", help="after which no trial begins")
    add("--workers", type=_count, default=1, metavar="W", help="processes at once (default 1)")
    add(
        "--config-dir",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="your own groups and options",
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


_SEARCH_EXAMPLES = """\
example:
  compresskd search strategy=compress_then_distill 'rank=int(4,64,log)'
    'bits=choice(2,3,4,8,null)' 'optimizer.lr=log(1e-4,1e-2)'
    --maximize accuracy --minimize bytes --where 'bytes<=50000' --workers 2"""
_OWN = """\
Code outside of compresskd runs where the run is your own and unchanged, or
where --trust names its package."""
VERBS = {
    RUN: Verb("train, distil, compress and quantize (the default)", _RUN, _of_run, verbs.run),
    "search": Verb("the best values of keys, by trials", """\
Look for the best values of the keys that have a range. Each trial is a run as
of a sweep, judged on validation; the test is scored at the end alone, of the
runs of --then. With several objectives there is a front; the first one decides
which of its points is chosen. The same command, or resume, continues a search.
Exit code 1 where no trial ends well, 3 where none keeps every bound.""", _of_search, verbs.search),
    GOAL: Verb("the smallest model that is good enough, by goal='accuracy>=-1.0'", """\
The smallest model within a point of its teacher: goal='accuracy>=-1.0'
minimize=bytes; the best one of a size: goal='bytes<=50000' maximize=accuracy.
A signed number counts from the teacher, in points of a percentage or in percent
of another figure (perplexity<=+2%), an unsigned one by itself; commas join
several. Validation decides; the answer alone is scored on test. Strategy, size
and bits are searched unless you say them. Exit code 3 where nothing meets the
goal: the nearest is shown. The verb itself may be left out.""", _of_goal, verbs.goal),
    "resume": Verb("continue a run where it stopped", f"Continue the run in DIR where it stopped.\n{_OWN}",
                   _of_resume, verbs.resume),
    "repeat": Verb("run a record again from scratch, and compare", f"""\
Run the configuration of the finished run in DIR again from scratch, its teacher
too (unless that came from given weights), into a folder that is not there yet;
say what of status, epochs, metrics, ranks, sizes, predictions and model.ckd is
equal. Exit code 1 where anything differs.
{_OWN}""", _of_repeat, verbs.repeat),
    "evaluate": Verb("score a finished model again", f"""\
Score the model of a finished stage again on the test split, and say whether the
recorded accuracy is reproduced; or score it on other data. Exit code 1 where it
is not reproduced.
{_OWN}""", _of_evaluate, verbs.evaluate),
    "compare": Verb("tables, statistics and a report of many runs",
                    "Compare finished runs: tables, statistics and a report out of their records.",
                    _of_compare, verbs.compare),
    "track": Verb("send runs to TensorBoard, MLflow or W&B", """\
Send runs that have been made to trackers, as tracker=NAME does while a run goes
on. What a tracker has already is not sent again.""", _of_track, verbs.track),
    "watch": Verb("a live table of runs that go on", """\
Show where the runs of a sweep, a search or a whole outputs folder stand: stage,
epoch, the metric that selects, time left, failures. It only reads.""", _of_watch, verbs.watch),
    "ls": Verb("list runs that fit conditions", """\
List the runs at or below folders, those that were written last first. Exit code
1 where none fits.""", _of_ls, verbs.ls),
    "export": Verb("write a finished model for other programs", """\
Write a finished model in a form that other programs run, and compare its
outputs with its own. Exit code 1 where they differ: the export is not kept.""", _of_export, verbs.export),
    "plan": Verb("what a command would do, before it does", """\
Check a configuration, and show the layers and parameters of what it compresses,
and the estimated bytes, memory and time of each stage. Nothing is trained or
written.""", _of_plan, verbs.plan),
    "predict": Verb("what a finished model says of new samples", f"""\
Make inputs of the samples in FILE as the model's own data were made, and print
what it predicts of each.
{_OWN}""", _of_predict, verbs.predict),
    "bench": Verb("latency of factorized layers, by plan", """\
Time factorized layers by plan, against dense ones and, where it is installed,
against tensorly-torch: medians of runs in turn, in one process.""", _of_bench, verbs.bench),
    "completion": Verb("what a shell puts in at TAB", """\
Print a script that completes verbs, flags, groups, their files and keys:
    eval "$(compresskd completion bash)"     in ~/.bashrc
    eval "$(compresskd completion zsh)"      in ~/.zshrc, after compinit
    compresskd completion fish | source      in config.fish""",
                       _of_completion, verbs.completion),
}  # fmt: skip

"""What a search is going to do, settled and checked before its first trial."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.cli.sweep import OF_HYDRA, identity, job_name
from compresskd.cli.trial import Composer, Order
from compresskd.config.faults import ConfigError, Fault
from compresskd.options import OptionError
from compresskd.search.desk import Prepared
from compresskd.search.quantities import Bound, Objective, Quantity, bound, known, objective
from compresskd.search.space import Dimension, Point, lines, parse
from compresskd.search.trials import Question

VALIDATION_ONLY, NO_LATENCY = "measure.validation_only=true", "measure.latency=false"
_HASH_DIGITS = 8
_LONGEST_NAME = 255  # bytes of a folder's name
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Plan:
    """A search that has been checked.

    Attributes:
        shared: the lines that every trial has besides its point.
        own: of these, the lines that the user wrote, and what keeps the teacher the same: the chosen run's.
        directory: of the search.
        example: one of its experiments.
    """

    question: Question
    shared: tuple[str, ...]
    own: tuple[str, ...]
    directory: Path
    composer: Composer
    example: Any
    pruned_by: str = ""

    def prepare(self, point: Point) -> Prepared:
        """Compose and build a point.

        Raises:
            ConfigError: with its faults.
        """
        experiment = self.composer.experiment([*self.shared, *lines(point)])
        folder = folder_of(point)
        text = _ADDRESS.sub("", identity(experiment))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Prepared(folder, digest, experiment)

    def order(self, point: Point, folder: str, search: Mapping[str, Any], experiment: Any, key: Any) -> Order:
        """The order to run a trial."""
        every = (*self.shared, *lines(point))
        return Order(self.directory / folder, every, search, self.pruned_by, key, experiment)

    @property
    def base_seed(self) -> int:
        """The seed that is given for the runs."""
        return int(self.example.seed)


def folder_of(point: Point) -> str:
    """The folder of a point's run, named as a sweep would name it."""
    name = job_name(lines(point), {key.lstrip("+~") for key in point})
    if all(len(part.encode()) <= _LONGEST_NAME for part in name.split("/")):
        return name
    return f"point_{hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]}"


@contextmanager
def faults_of_options() -> Iterator[None]:
    """Errors of options inside become faults of the command line."""
    try:
        yield
    except OptionError as error:
        raise ConfigError([Fault(each.field, each.text) for each in error.errors]) from error


def settle(
    asked: Mapping[str, Any],
    directory: Path | None,
    trust: Sequence[str] | None,
    looked_for: tuple[Sequence[Dimension], Point] | None = None,
) -> Plan:
    """Read and check what is asked for.

    Args:
        asked: see `search.asked_of`.
        directory: of the search, where that is settled already.
        trust: packages whose code may run; None where the user has typed it all.
        looked_for: of a goal, whose words have no ranges: the keys that vary, and a point that can be built.

    Raises:
        ConfigError: with every fault.
    """
    composer = Composer(tuple(map(Path, asked["config_dirs"])), None if trust is None else tuple(trust))
    with faults_of_options():
        space, rest = parse(asked["words"]) if looked_for is None else (looked_for[0], list(asked["words"]))
        if not space:
            raise OptionError(
                "search", "no key that varies", "one or more, as in 'rank=int(4,64)' 'bits=choice(2,4)'"
            )
    _refuse_sweeps(rest)
    first = {each.key: each.ends[0] for each in space} if looked_for is None else looked_for[1]
    (example,) = composer.experiments([[*rest, *lines(first)]])
    own = [*rest, *_same_teacher(rest, first, asked, composer, example)]
    with faults_of_options():
        quantities = known(example.data.task.describe())
        question = Question(tuple(space), _objectives(asked, quantities, example), _bounds(asked, quantities))
        fixed = _fixed(question, rest, asked, example)
    shared = (*own, *fixed)
    if looked_for is None:  # what a goal is looked for at has been built
        _check_ends(space, shared, composer, question)
    where = directory or _directory(asked, rest, space, example, composer.job([*rest, *lines(first)]).sweep)
    return Plan(question, shared, tuple(own), where, composer, example, _pruned_by(question))


def _refuse_sweeps(rest: Sequence[str]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    faults = []
    for line in rest:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([line])
        except (HydraException, ValueError, RecursionError):
            continue  # it is told when it is composed
        if parsed.is_sweep_override():
            value = line.partition("=")[2]
            text = f"got {value}, expected one value, or what to choose from: {parsed.key_or_group}=choice({value})"
            faults.append(Fault(parsed.key_or_group, text))
    if faults:
        raise ConfigError(faults)


def _same_teacher(
    rest: Sequence[str], first: Point, asked: Mapping[str, Any], composer: Composer, example: Any
) -> list[str]:
    """The line by which a teacher that is trained as long as the student keeps its epochs whatever the trials have."""
    varies = asked.get("epochs") is not None or "epochs" in first
    said = any(line.startswith(("teacher_fit.epochs=", "teacher_fit=")) for line in rest)
    if example.teacher is None or not varies or said:
        return []
    without = {key: value for key, value in first.items() if key != "epochs"}
    base = composer.experiment([*rest, *lines(without)])
    return [f"teacher_fit.epochs={base.config['teacher_fit']['epochs']}"]


def _objectives(
    asked: Mapping[str, Any], quantities: Mapping[str, Quantity], example: Any
) -> tuple[Objective, ...]:
    wanted = asked["objectives"]
    if not wanted:
        monitor = example.data.task.monitor
        wanted = [["maximize" if monitor.higher_is_better else "minimize", monitor.name]]
    dashes = "--" if asked["kind"] == "search" else ""
    found = [objective(name, way == "maximize", f"{dashes}{way}", quantities) for way, name in wanted]
    twice = [each.quantity.name for each in found if found.count(each) > 1]
    if twice:
        raise OptionError(f"{dashes}{wanted[-1][0]}", twice[0], "each figure once")
    return tuple(found)


def _bounds(asked: Mapping[str, Any], quantities: Mapping[str, Quantity]) -> tuple[Bound, ...]:
    key = "--where" if asked["kind"] == "search" else "goal"
    return tuple(bound(text, key, quantities) for text in asked["where"])


def _fixed(question: Question, rest: Sequence[str], asked: Mapping[str, Any], example: Any) -> list[str]:
    """What trials have and the chosen run has not."""
    epochs = asked.get("epochs")
    if epochs is not None and example.config.get("total_epochs") is not None:
        raise OptionError(
            "--epochs", epochs, "no total_epochs beside it: that says how long trials are trained"
        )
    if epochs is not None and any(each.key == "epochs" for each in question.space):
        raise OptionError("--epochs", epochs, "epochs either by --epochs or as a key that varies")
    timed = any(q.name == "latency" for q in _quantities(question))
    if timed and asked["workers"] > 1:
        raise OptionError(
            "--workers", asked["workers"], "1: latencies that are measured side by side say nothing"
        )
    if timed and not example.measure_latency:
        raise OptionError("measure.latency", False, "true: the search asks for the latency")
    if any(bound.relative for bound in question.bounds) and example.teacher is None:
        raise OptionError(
            "--where", question.bounds[0].text, "an unsigned number: these runs have no teacher"
        )
    untimed = [] if timed or any(line.startswith("measure.") for line in rest) else [NO_LATENCY]
    return [VALIDATION_ONLY, *untimed, *([] if epochs is None else [f"epochs={epochs}"])]


def _quantities(question: Question) -> list[Quantity]:
    return [each.quantity for each in (*question.objectives, *question.bounds)]


def _check_ends(
    space: Sequence[Dimension], shared: Sequence[str], composer: Composer, question: Question
) -> None:
    """Build the runs at both ends of each range, and with each choice, the others at their first value."""
    first = {each.key: each.ends[0] for each in space}
    points = [first, *({**first, each.key: end} for each in space for end in each.ends[1:])]
    experiments = composer.experiments([[*shared, *lines(point)] for point in points])
    if any(bound.relative for bound in question.bounds):
        lacking = [p for p, e in zip(points, experiments, strict=True) if e.teacher is None]
        if lacking:
            text = f"an unsigned number: the runs with {' '.join(lines(lacking[0]))} have no teacher"
            with faults_of_options():
                raise OptionError("--where", question.bounds[0].text, text)


def _pruned_by(question: Question) -> str:
    """The metric whose epochs are judged: that of the only objective, where it is one."""
    only = question.objectives[0].quantity
    return only.name if len(question.objectives) == 1 and only.metric is not None else ""


def _directory(
    asked: Mapping[str, Any],
    rest: Sequence[str],
    space: Sequence[Dimension],
    example: Any,
    said: Mapping[str, str],
) -> Path:
    """OUTPUTS/searches/KEYS_HASH, where the same search comes back to its own trials; or where the user says."""
    if "dir" in said:
        return Path(said["dir"]).absolute()
    kept = sorted(line for line in rest if not line.startswith((*OF_HYDRA, "outputs_dir=")))
    determining = [
        kept,
        sorted(map(repr, space)),
        *(asked.get(k) for k in ("objectives", "where", "epochs", "seed")),
    ]
    digest = hashlib.sha256(repr(determining).encode()).hexdigest()[:_HASH_DIGITS]
    name = "+".join(sorted(each.key.rpartition(".")[2].lstrip("+~") for each in space))
    folder = "goals" if asked["kind"] == "goal" else "searches"
    return Path(example.config["outputs_dir"]).absolute() / folder / f"{name}_{digest}"

"""`compresskd search`: trials as a sweep's jobs, at points that Optuna chooses; then the front, and the best run."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compresskd.cli.endings import FAILURE, NOT_MET, complain
from compresskd.cli.goal import narrowed
from compresskd.cli.pool import carry_out_all
from compresskd.cli.search_end import answer, run_chosen, show_front, write_report
from compresskd.cli.search_plan import Plan, faults_of_options, settle
from compresskd.cli.trial import Order
from compresskd.cli.warm_start import given_trials
from compresskd.run import FAILED, Foreign, InUse, RunDirectoryError, check_kind, describe_owner
from compresskd.run.lock import acquire
from compresskd.search.desk import Desk
from compresskd.search.pruning import Pruning
from compresskd.search.sampler import Sampler, imported
from compresskd.search.trials import FILE, Search, read_search

_TRIALS = 40
_GOING_ON = ("trials", "minutes", "workers", "then", "warm_start", "cwd")  # may change when it is continued


def run(arguments: Namespace) -> int:
    """Begin a search, or continue the same one."""
    return conduct(asked_of(arguments))


def asked_of(arguments: Namespace) -> dict[str, Any]:
    """What was typed, as search.json keeps it."""
    trials = arguments.trials
    return {
        "kind": "search",
        "words": list(arguments.words),
        "objectives": [list(each) for each in arguments.objectives],
        "where": list(arguments.where),
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "trials": _TRIALS if trials is None and arguments.minutes is None else trials,
        "minutes": arguments.minutes,
        "workers": arguments.workers,
        "then": arguments.then,
        "warm_start": [str(path.absolute()) for path in arguments.warm_start],
        "config_dirs": [str(path.absolute()) for path in arguments.config_dir],
        "cwd": os.getcwd(),
    }


def resume(directory: Path, trust: Sequence[str]) -> int:
    """Continue the search in a directory as it was asked for, from where it was begun."""
    directory = directory.absolute()
    asked = read_search(directory).asked
    try:
        os.chdir(asked["cwd"])
    except (OSError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{directory / FILE}: the search was begun in a folder that is not there any more"
        ) from error
    return conduct(asked, directory, trust)


def conduct(
    asked: Mapping[str, Any], directory: Path | None = None, trust: Sequence[str] | None = None
) -> int:
    """Run a search to its end."""
    goal = narrowed(asked, trust) if asked["kind"] == "goal" else None
    with faults_of_options():
        if goal is None:
            imported()
    plan = (
        settle(asked, directory, trust)
        if goal is None
        else settle(goal.asked, directory, trust, goal.looked_for)
    )
    _check_folder(plan.directory)
    with _held(plan.directory) as check:
        search = _search_in(plan.directory, asked)
        search.check = check
        if not search.trials and asked["warm_start"]:
            search.trials += given_trials(plan, [Path(path) for path in asked["warm_start"]], complain)
        proposer = goal.proposer(plan, search.trials) if goal else Sampler(plan.question, asked["seed"])
        desk = desk_of(plan, search, asked, proposer)
        desk.save()
        say(f"the search is in {plan.directory}")
        with resumable(plan.directory):
            carry_out_all(Trials(desk, plan), plan.composer, asked["workers"])
            return conclude(plan, search, asked)


def desk_of(plan: Plan, search: Search, asked: Mapping[str, Any], proposer: Any) -> Desk:
    """Where the trials of a plan are handed out."""
    judged = plan.question.objectives[0].quantity.metric
    pruning = Pruning(judged) if plan.pruned_by and judged is not None else None
    return Desk(
        search, plan.question, proposer, plan.prepare, print, asked["trials"], asked["minutes"], pruning
    )


def conclude(plan: Plan, search: Search, asked: Mapping[str, Any]) -> int:
    """Show and write what came of the trials; run the chosen point again."""
    best = answer(plan, search)
    show_front(plan, search)
    failed = [trial for trial in search.counted if trial.state == FAILED]
    for trial in failed:
        complain(f"{trial.folder or trial.name}: {trial.reason}")
    status = 0
    if best is None and not any(trial.is_known for trial in search.trials):
        complain("no trial has ended with a model")
        status = FAILURE
    elif best is None:
        status = NOT_MET
    elif asked["then"]:
        seeds = [plan.base_seed + number for number in range(asked["then"])]
        status = run_chosen(plan, search, best, seeds, asked["workers"])
    write_report(plan, search)
    return status


def say(text: str) -> None:
    """Show a line at once, in a file too: a search goes on for long."""
    print(text, flush=True)


class Trials:
    """The trials of a desk as orders."""

    def __init__(self, desk: Desk, plan: Plan):
        self._desk, self._plan = desk, plan

    def next(self) -> Order | None:
        """The next trial."""
        trial = self._desk.next()
        if trial is None:
            return None
        about = {"trial": trial.number, "question": self._plan.question.words}
        return self._plan.order(trial.point, trial.folder, about, self._desk.jobs[trial.number], trial)

    def judge(self, order: Order, strategy: str, stage: str, epoch: int, value: float) -> bool:
        """Whether a trial is to be given up."""
        return self._desk.judge(order.key, strategy, stage, epoch, value)

    def end(self, order: Order, reason: str) -> None:
        """Take a trial back."""
        self._desk.end(order.key, reason)

    def say(self, text: str) -> None:
        """Show a line."""
        say(text)


@contextmanager
def resumable(directory: Path) -> Iterator[None]:
    """Ctrl-C inside, and SIGTERM, its like, says how to go on."""
    from compresskd.training.interrupt import termination_interrupts

    try:
        with termination_interrupts():
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the search is interrupted, and what ran is saved; resume it by: compresskd resume {directory}"
        ) from None


@contextmanager
def _held(directory: Path) -> Iterator[Callable[[], None]]:
    """Hold the folder of a search, so that no two processes hand out its trials; yields what sees that it still is."""
    held = acquire(directory, 0.0)
    if held is None:
        raise InUse(f"{directory} is in use by another process ({describe_owner(directory)}); wait for it")
    try:
        yield held.check
    finally:
        held.release(for_good=True)


def _check_folder(directory: Path) -> None:
    """See that a search may be kept in `directory`: it is missing, empty, or a search's already."""
    check_kind(directory / FILE)
    left = {"run.lock", "run.owner"}  # by one that was killed before it wrote its file
    if (
        directory.is_dir()
        and {path.name for path in directory.iterdir()} - left
        and not (directory / FILE).exists()
    ):
        raise Foreign(
            f"{directory} is not empty and is no search of compresskd; nothing in it was touched; write another "
            "hydra.sweep.dir=DIR, which is empty or not there"
        )


def _search_in(directory: Path, asked: Mapping[str, Any]) -> Search:
    """The search that is in a directory already, to be continued; or a new one."""
    if not (directory / FILE).exists():
        return Search(directory, asked)
    search = read_search(directory)
    changed = [key for key in asked if key not in _GOING_ON and asked[key] != search.asked.get(key)]
    if changed:
        then = "; ".join(f"{key}: {search.asked.get(key)}, now {asked[key]}" for key in changed)
        raise RunDirectoryError(
            f"{directory} holds another search ({then}); write another hydra.sweep.dir=DIR"
        )
    search.asked = asked
    return search

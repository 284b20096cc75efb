"""The end of a search: the front as a table, a report and configurations; the chosen point run again, and tested."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from compresskd.cli.endings import FAILURE, complain
from compresskd.cli.pool import carry_out_all
from compresskd.cli.search_plan import Plan
from compresskd.cli.trial import Order
from compresskd.run import FINISHED, Record, RunDirectoryError, read_record, write_text
from compresskd.search.front import chosen, front, nearest
from compresskd.search.report import counts, figures_line, front_table, point_line, rule
from compresskd.search.space import lines
from compresskd.search.trials import Search, Trial

FRONT, BEST = "front", "best"


def answer(plan: Plan, search: Search) -> Trial | None:
    """The chosen trial, noted in search.json; None where none keeps every bound."""
    question = plan.question
    best, near = chosen(search.trials, question), nearest(search.trials, question)
    search.answer = {
        **search.answer,
        "question": question.words,
        "rule": rule(question),
        "trials": counts(search),
    }
    search.answer |= {"front": [trial.name for trial in front(search.trials, question)]}
    search.answer |= {
        "chosen": best.name if best else None,
        "nearest": None if best or not near else near.name,
    }
    search.save()
    return best


def show_front(plan: Plan, search: Search) -> None:
    """Print the front, and write its points as configurations."""
    import sys

    from compresskd.compare import terminal

    question = plan.question
    table = front_table(search, question)
    print(f"{question.words}: {counts(search)}")
    if table.rows:
        width = terminal.width_of(sys.stdout)
        print(terminal.render([], [table], max_rows=0, width=width, colour=False).strip("\n"))
    elif (near := nearest(search.trials, question)) is not None:
        complain(f"no trial has {' and '.join(bound.text for bound in question.bounds)}; the nearest is {near.name}: "
                 f"{point_line(near)}: {figures_line(near, question)}")  # fmt: skip
    for trial in front(search.trials, question):
        _write_experiment(plan, search, trial)


def write_report(plan: Plan, search: Search) -> None:
    """Write the report of all trials, and of the chosen runs."""
    from compresskd.compare import report_search

    question = plan.question
    metric = f"validation_{plan.example.data.task.monitor.name}"
    for line in report_search(
        search.directory, metric, f"Search: {question.words}", front_table(search, question)
    ):
        print(line)


def run_chosen(plan: Plan, search: Search, best: Trial, seeds: Sequence[int], workers: int) -> int:
    """Run the chosen point again, as the user's own configuration has it, on these seeds; the test is scored here and
    nowhere else.
    """
    print(
        f"{best.name} is chosen ({rule(plan.question)}); its runs on the seeds {', '.join(map(str, seeds))}:"
    )
    source = Chosen(plan, search, best, seeds)
    carry_out_all(source, plan.composer, workers)
    search.answer["runs"] = [str(folder) for folder in source.folders]
    search.save()
    say_result([record for record in source.records() if record.status == FINISHED], search)
    return FAILURE if source.failed else 0


class Chosen:
    """The runs of the chosen point as orders, one a seed."""

    def __init__(self, plan: Plan, search: Search, best: Trial, seeds: Sequence[int]):
        self._plan, self._search, self._waiting = plan, search, list(seeds)
        self._lines = [*plan.own, *lines(best.point)]
        self.folders = [Path(BEST, best.name, f"seed={seed}") for seed in seeds]
        self._about = {
            "chosen": best.name,
            "num_trials": len(search.counted),
            "question": plan.question.words,
        }
        self._about |= {"rule": rule(plan.question)}
        self._name, self.failed = best.name, False

    def next(self) -> Order | None:
        """The next seed."""
        if not self._waiting:
            return None
        seed = self._waiting.pop(0)
        directory = self._search.directory / BEST / self._name / f"seed={seed}"
        return Order(directory, (*self._lines, f"seed={seed}"), self._about, key=seed)

    def judge(self, order: Order, strategy: str, stage: str, epoch: int, value: float) -> bool:
        """None of them is given up."""
        return False

    def end(self, order: Order, reason: str) -> None:
        """Say how one went."""
        if reason:
            self.failed = True
            complain(f"{order.directory}: {reason}")
        else:
            print(f"seed={order.key}: {_result(read_record(order.directory))}")

    def say(self, text: str) -> None:
        """Show a line."""
        print(text)

    def records(self) -> list[Record]:
        """Those that can be read."""
        found = []
        for folder in self.folders:
            try:
                found.append(read_record(self._search.directory / folder))
            except RunDirectoryError:  # it has failed before it wrote one, and that was said
                continue
        return found


def say_result(records: Sequence[Record], search: Search) -> None:
    """The test of the chosen point, over seeds, and of how many trials it is the best."""
    if not records:
        return
    metric = records[0].monitor
    values = [float((r.stage(r.final) or {})["metrics"][f"test_{metric.name}"]) for r in records]
    spread = ""
    if len(values) > 1:
        deviation = metric.shown(statistics.stdev(values)).removesuffix("%")
        spread = f" ± {deviation} over {len(values)} seeds"
    print(
        f"test {metric.name} {metric.shown(statistics.mean(values))}{spread}; "
        f"the best of {len(search.counted)} trials"
    )


def _result(record: Record) -> str:
    """The figures of a chosen run."""
    metric, final = record.monitor, record.stage(record.final) or {}
    found: Mapping[str, float] = final.get("metrics", {})
    scores = [f"{split} {metric.shown(found[name])}" for split in ("validation", "test")
              if (name := f"{split}_{metric.name}") in found]  # fmt: skip
    return f"{metric.name} {', '.join(scores)}; {final.get('size', {}).get('file_bytes', 0):,} bytes"


def _write_experiment(plan: Plan, search: Search, trial: Trial) -> None:
    """front/experiment/NAME.yaml, which --config-dir DIR/front makes an experiment of that name; and the command."""
    from compresskd.config.chosen import NotWritten, experiment_yaml

    every = [*plan.own, *lines(trial.point)]
    dirs = "".join(f" --config-dir {shlex.quote(str(each))}" for each in plan.composer.config_dirs)
    command = f"compresskd{dirs} {shlex.join(every)}"
    about = f"{trial.name} of a search: {plan.question.words}; {figures_line(trial, plan.question)}"
    path = search.directory / FRONT / "experiment" / f"{trial.name}.yaml"
    try:
        text = experiment_yaml(every)
    except NotWritten as error:
        path, text = path.with_suffix(".txt"), f"# no YAML: {error}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{_package(text)}# {about}\n#   {command}\n{text.removeprefix(_PACKAGE)}")


_PACKAGE = "# @package _global_\n"


def _package(text: str) -> str:
    return _PACKAGE if text.startswith(_PACKAGE) else ""

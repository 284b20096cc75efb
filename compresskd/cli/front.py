"""A list of budgets: one run for each, in a folder of its own below the run's, all from one table of errors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compresskd.cli.execute import check_same_config, execute
from compresskd.run import AlreadyFinished, read_record

FOLDER = "front"
_KEY = "compress.budget"


def points_of(job: Any) -> dict[str, Any]:
    """The jobs of one budget each that a job of a list of them stands for, by their folders; none of other jobs."""
    from omegaconf import ListConfig, OmegaConf

    from compresskd.config.compose import Job
    from compresskd.config.faults import ConfigError, Fault

    budgets = OmegaConf.select(job.config, _KEY)
    if not isinstance(budgets, ListConfig):
        return {}
    if not budgets or len(set(map(str, budgets))) < len(budgets):
        raise ConfigError([Fault(_KEY, f"got {list(budgets)}, expected one or more different numbers")])
    points = {}
    for budget in budgets:
        config = copy.deepcopy(job.config)
        OmegaConf.update(config, _KEY, budget)
        others = [line for line in job.overrides if line.partition("=")[0].lstrip("+") != _KEY]
        points[f"{FOLDER}/{budget}"] = Job([*others, f"{_KEY}={budget}"], "", config, job.faults)
    return points


def check_untrained(experiments: Iterable[Any]) -> None:
    """Refuse a front of models that are trained after they are compressed: each trains by itself.

    Raises:
        ConfigError: of the budget.
    """
    from compresskd.config.faults import ConfigError, Fault

    experiments = list(experiments)
    if any(experiment.strategy.num_epochs for experiment in experiments):
        budgets = [experiment.config["compress"]["budget"] for experiment in experiments]
        text = f"got {budgets}, expected one number with a strategy that trains; write -m {_KEY}="
        raise ConfigError([Fault(_KEY, text + ",".join(map(str, budgets)))])


def run_front(experiments: dict[str, Any], directory: Path) -> None:
    """Run each point that is not finished, and compare them all."""
    from compresskd.compare import summarize_sweep
    from compresskd.compression.plan import tables_kept

    with tables_kept():
        for folder, experiment in experiments.items():
            place = directory / folder
            try:
                execute(experiment, place, unique=False)
            except AlreadyFinished:
                check_same_config(place, read_record(place), experiment)
                print(f"skipped: {place} is finished")
    table = summarize_sweep(directory / FOLDER)
    if table:
        print(table)

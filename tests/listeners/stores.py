"""What is in the stores of trackers, read by their own clients: points by run and name, parameters, files."""

import os
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def of_tensorboard(folder):
    """{name: [step, ...]} of one run's events, in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [event.step for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def of_mlflow(database):
    """{run name: {"status", "points": {name: [step, ...]}, "parameters", "files"}}."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    (experiment,) = client.search_experiments(filter_string="name = 'compresskd'")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        number = run.info.run_id
        points = {
            name: sorted(m.step for m in client.get_metric_history(number, name)) for name in run.data.metrics
        }
        assert run.info.run_name not in found
        found[run.info.run_name] = {
            "status": run.info.status,
            "points": points,
            "parameters": run.data.params,
            "files": sorted(each.path for each in client.list_artifacts(number)),
        }
    return found


def of_wandb(outputs):
    """{identity: {name: [epoch, ...]}} of all files of each run, by wandb's own format of a record."""
    from compresskd.listeners.wandb import _rows

    found = {}
    for identity in {
        path.stem.removeprefix("run-") for path in Path(outputs, "wandb").glob("*run-*/run-*.wandb")
    }:
        points = found.setdefault(identity, {})
        for row in _rows(Path(outputs), identity):
            for name, epoch in row.items():
                points.setdefault(name, []).append(epoch)
    return found

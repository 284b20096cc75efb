"""Strategies side by side on one teacher: the study `experiment=compare_strategies`, in memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from compresskd import artifact, measure
from compresskd.api.samples import Samples, batch_size_of, data_of
from compresskd.api.session import carry_out, session
from compresskd.api.tables import Row, table_of
from compresskd.config.build import resolved
from compresskd.config.compose import Job, compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.parts import Parts
from compresskd.engine.strategy import Context, State, Strategy, score
from compresskd.models.build import build, spec_of
from compresskd.training import Recipe


def compare_compression_strategies(
    teacher: nn.Module,
    train_loader: Samples,
    val_loader: Samples,
    *,
    test_loader: Samples | None = None,
    student: nn.Module | None = None,
    rank: int = 8,
    epochs: int = 24,
    strategies: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    as_rows: bool = False,
) -> Any:
    """Train, distil, compress and combine on one teacher, as `compresskd experiment=compare_strategies` does.

    Every strategy has the same epochs in all. One that cannot be run (a budget that its stages cannot share, a model
    without a width to change) has a row that says why, in `note`.

    Args:
        teacher: trained; it is not changed.
        train_loader: samples as `compresskd.distill` takes them.
        val_loader: the samples that choose epochs, and that all are scored on.
        test_loader: samples that all are scored on besides; None scores on those of val_loader alone.
        student: the untrained student; None takes the teacher's architecture with fresh parameters.
        rank: largest TT-rank of compressed layers.
        epochs: of all training stages of a strategy together.
        strategies: names as in `strategy=NAME`; None takes those of the study: the baseline, distillation alone,
            compression alone, and their combinations.
        seeds: one row of each.
        overrides: further keys as on the command line, such as "kd.alpha=0.5" or "optimizer.lr=1e-3".
        as_rows: a list of dicts in any case.

    Returns:
        A pandas DataFrame where pandas is installed, else a list of dicts: strategy, seed, accuracies (fractions),
        agreement with the teacher, parameters, how many times fewer than the teacher's, bytes of the compact model
        file (where a model says how it was built), seconds, note. The first row is the teacher.

    Raises:
        ConfigError: a strategy or key that does not exist.
        ValueError: samples that do not fit the teacher, or a student that cannot be made of it.

    >>> import torch, compresskd
    >>> x, y = torch.randn(96, 16), torch.arange(96) % 2
    >>> teacher = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> train_loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:64], y[:64]), batch_size=32)
    >>> val_loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[64:], y[64:]), batch_size=32)
    >>> table = compresskd.compare_compression_strategies(teacher, train_loader, val_loader, rank=2, epochs=2,
    ...     strategies=["train", "distill", "compress", "distill_then_compress"], as_rows=True)
    >>> [row["strategy"] for row in table]
    ['teacher', 'train', 'distill', 'compress', 'distill_then_compress']
    """
    data = data_of(train_loader, val_loader, test_loader)
    state = State(teacher, copy.deepcopy(teacher).eval().requires_grad_(False))
    device = next(teacher.parameters()).device
    rows: list[Row] = []
    for job in _composed(train_loader, rank, epochs, strategies, seeds, overrides):
        row = {"strategy": str(job.config.strategy.name), "seed": int(job.config.seed)}
        try:
            config = resolved(job.config)
        except ConfigError as error:  # epochs that its stages cannot share
            rows.append(row | {"note": "; ".join(f"{fault.key}: {fault.text}" for fault in error.faults)})
            continue
        strategy, recipe = _parts(config)
        fresh = _fresh(teacher, row["seed"]) if student is None else copy.deepcopy(student)
        with session(data, recipe, row["seed"], device, fresh, None) as context:
            if not any(each["strategy"] == "teacher" for each in rows):
                rows.insert(0, {"strategy": "teacher"} | _scored(state, context) | {"note": ""})
            rows.append(_run(strategy, replace(state, student=fresh.to(device)), context, row))
    return table_of(rows, as_rows=as_rows)


def _composed(
    train_loader: Samples, rank: int, epochs: int, strategies: Sequence[str] | None, seeds: Sequence[int],
    overrides: Sequence[str],
) -> list[Job]:  # fmt: skip
    """The jobs of the study, by the names and defaults of the command line."""
    size = batch_size_of(train_loader)
    lines = ["experiment=compare_strategies", f"rank={rank}", f"total_epochs={epochs}"]
    lines += [f"train.batch_size={size}"] if size else []
    lines += [] if strategies is None else [f"strategy={','.join(strategies)}"]
    jobs = compose_jobs([*lines, f"seed={','.join(map(str, seeds))}", *overrides]).jobs
    faults = [fault for job in jobs for fault in job.faults]
    if faults:
        raise ConfigError(faults)
    return jobs


def _parts(config: Mapping[str, Any]) -> tuple[Strategy, Recipe]:
    parts = Parts(config)
    parts.check()
    recipe, strategy = parts.recipe(config), parts.strategy()
    parts.stop_at_faults()
    assert recipe is not None and strategy is not None  # noqa: PT018 - else there were faults
    return strategy, recipe


def _fresh(teacher: nn.Module, seed: int) -> nn.Module:
    """The teacher's architecture with parameters of its own."""
    if hasattr(teacher, "spec"):
        spec = spec_of(teacher)
        return build(spec["target"], spec["kwargs"], seed=seed)
    fresh = copy.deepcopy(teacher).requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # pyright: ignore[reportCallIssue]
            elif any(True for _ in module.parameters(recurse=False)):
                raise ValueError(
                    f"student: '{name}' of the teacher cannot be made afresh; write student=a module"
                )
    return fresh


def _run(strategy: Strategy, state: State, context: Context, row: Row) -> Row:
    """The row of one strategy; what stops it is its note."""
    started = time.perf_counter()
    try:
        for name, stage in strategy.stages.items():
            state = carry_out(name, stage, state, context)
            reached = score(state.student, context.data.validation, context).values
            metrics = {f"validation_{metric}": value for metric, value in reached.items()}
            entry = {"name": name, "metrics": metrics, **context.details}
            context.record.stages.append(entry)  # a schedule of ranks looks at what came before
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return row | {"note": str(error)}
    return row | _scored(state, context) | {"seconds": time.perf_counter() - started, "note": ""}


def _scored(state: State, context: Context) -> Row:
    """What the student does, and what it takes."""
    student, teacher = state.student, state.teacher
    assert teacher is not None
    row: Row = {}
    splits = {split.fingerprint: split for split in (context.data.test, context.data.validation)}
    for split in reversed(splits.values()):
        scores = score(student, split, context)
        agreement = (scores.predictions == score(teacher, split, context).predictions).float().mean()
        row |= {f"{split.name}_accuracy": scores.accuracy, "teacher_agreement": float(agreement)}
    count = measure.num_parameters(student)
    row |= {"num_parameters": count, "times_fewer": measure.num_parameters(teacher) / max(1, count)}
    if hasattr(student, "spec"):
        content = artifact.content_of(student)
        row |= artifact.compact_sizes(content, trust=artifact.packages(student))
    return row

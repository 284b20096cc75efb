"""Data sets of tables: files of the user's own, and two that come with scikit-learn."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from compresskd.data.assemble import Source, assemble
from compresskd.data.base import Data
from compresskd.data.checks import check_probabilities
from compresskd.data.notice import Notice
from compresskd.data.standardize import standardized
from compresskd.data.stratify import cut_rows
from compresskd.data.table.encode import (
    Column,
    check_values,
    column_of,
    encoded,
    is_number,
    is_text,
    numbers,
)
from compresskd.data.table.read import read_tables
from compresskd.data.unlabelled import KEY, of_unlabelled, without_labels
from compresskd.data.weights import class_weights as weights_of_classes
from compresskd.options import Count, OptionError, did_you_mean
from compresskd.tasks import CLASSES, LABELS, VALUES

_FEW_CLASSES = 20  # whole numbers of no more different values are classes, where no task says otherwise


class TableOptions(TypedDict, total=False):
    """How every table is cut."""

    num_classes: Count | None
    input_shape: Sequence[int] | None
    test_fraction: float | None
    validation_fraction: float | None
    validation_count: int | None
    split_seed: int
    allow_overlap: bool


def table(
    *,
    name: str,
    path: str | None,
    target: str | Sequence[str] | None,
    columns: Sequence[str] | None,
    categorical: Sequence[str],
    weight_column: str | None,
    class_weights: Sequence[float] | str | None,
    asks: str | None,
    train_split: str | None,
    validation_split: str | None,
    test_split: str | None,
    unlabelled_path: str | None = None,
    **options: Unpack[TableOptions],
) -> Data:
    """Rows of a csv, parquet or json lines file, or of a folder with one for each split.

    Numbers are standardized by the training rows, strings are categories, each an input of 0 or 1.

    Args:
        target: the column to predict; for labels and values several may be named, and for classes one with the
            probability of each class (soft labels).
        columns: of the inputs; None takes all others.
        categorical: those whose numbers are categories.
        asks: "classes", "labels" (0 or 1 in each target column) or "values" (numbers); None: classes for strings and
            few whole numbers, values for other numbers, labels for several columns of 0 and 1.
        unlabelled_path: of rows with the columns of the inputs.

    Raises:
        OptionError: for an option that does not fit, and ValueError for rows that cannot be used.
    """
    splits = {"train_split": train_split, "validation_split": validation_split, "test_split": test_split}
    found, notices = read_tables(path, **splits)
    if target is None or not target:
        expected = f"the column to predict, one of {', '.join(found['train'].column_names)}"
        raise OptionError("target", target, expected)
    targets = [target] if isinstance(target, str) else list(target)
    weighed = [] if weight_column is None else [weight_column]
    others = [c for c in found["train"].column_names if c not in (*targets, *weighed)]
    inputs = others if columns is None else list(columns)
    where = str(path)
    _check_columns(found, targets, inputs, categorical, weight_column, where)
    return _table(
        name,
        found,
        inputs=inputs,
        targets=targets,
        categorical=categorical,
        weight_column=weight_column,
        class_weights=class_weights,
        asks=asks,
        where=where,
        notices=notices,
        options=options,
        unlabelled_path=unlabelled_path,
    )


def diabetes(*, name: str, **options: Unpack[TableOptions]) -> Data:
    """Scikit-learn's diabetes: ten numbers of each of 442 patients, and how the disease went on.

    B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, "Least Angle Regression", Annals of Statistics 32 (2004).
    """
    names = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    inputs, progression = _diabetes()
    found = _arrow({**dict(zip(names, inputs.T, strict=True)), "progression": progression})
    return _embedded(name, found, names, ["progression"], VALUES, options)


def multi_label(
    *,
    name: str,
    num_samples: Count,
    num_features: Count,
    num_labels: Count,
    data_seed: int,
    **options: Unpack[TableOptions],
) -> Data:
    """Scikit-learn's generator of counts of words and the topics of each text, here of `num_labels` topics."""
    from sklearn.datasets import make_multilabel_classification

    made: Any = make_multilabel_classification(
        n_samples=num_samples, n_features=num_features, n_classes=num_labels, random_state=data_seed
    )
    names, labels = [f"x{i}" for i in range(num_features)], [f"label{i}" for i in range(num_labels)]
    columns = zip([*names, *labels], [*made[0].T, *made[1].T], strict=True)
    return _embedded(name, _arrow(dict(columns)), names, labels, LABELS, options)


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    """[442, 10] and [442] float64."""
    # Importing scikit-learn takes two seconds, reading its files two hundredths.
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "datasets" / "data"
        files = [folder / "diabetes_data_raw.csv.gz", folder / "diabetes_target.csv.gz"]
        if all(map(Path.is_file, files)):
            inputs, targets = map(np.loadtxt, files)
            return inputs, targets
    from sklearn.datasets import load_diabetes

    loaded: Any = load_diabetes(return_X_y=True, scaled=False)
    return loaded


def _arrow(columns: Mapping[str, np.ndarray]) -> Any:
    import pyarrow

    return pyarrow.table(dict(columns))


def _embedded(
    name: str, found: Any, inputs: list[str], targets: list[str], asks: str, options: TableOptions
) -> Data:
    return _table(
        name,
        {"train": found},
        inputs=inputs,
        targets=targets,
        categorical=(),
        weight_column=None,
        class_weights=None,
        asks=asks,
        where=name,
        notices=(),
        options=options,
    )


def _check_columns(
    found: Mapping[str, Any],
    targets: Sequence[str],
    inputs: Sequence[str],
    categorical: Sequence[str],
    weight_column: str | None,
    where: str,
) -> None:
    for split, part in found.items():
        present = part.column_names
        weighed = [] if weight_column is None else [weight_column]
        keys = {"target": targets, "columns": inputs, "weight_column": weighed}
        for key, names in keys.items():
            for one in names:
                if one not in present:
                    expected = f"a column of the {split} split of {where}: {', '.join(present)}"
                    raise OptionError(key, one, expected + did_you_mean(one, present))
    for one in categorical:
        if one not in inputs:
            raise OptionError("categorical", one, f"one of the input columns, {', '.join(inputs)}")
    both = [one for one in targets if one in inputs]
    if both:
        raise OptionError("columns", both[0], "columns besides the target: it would be given away")
    if not inputs:
        raise OptionError("columns", list(inputs), "one column or more besides the target")


def _table(
    name: str,
    found: Mapping[str, Any],
    *,
    inputs: Sequence[str],
    targets: Sequence[str],
    categorical: Sequence[str],
    weight_column: str | None,
    class_weights: Sequence[float] | str | None,
    asks: str | None,
    where: str,
    notices: Sequence[Notice],
    options: TableOptions,
    unlabelled_path: str | None = None,
) -> Data:
    weighed = [] if weight_column is None else [weight_column]
    for split, part in found.items():
        check_values(part, [*inputs, *targets, *weighed], f"the {split} split of {where}")
    asks = asks or _asked(found["train"], targets)
    _check_target(found, targets, asks, where)
    names, raw = _targets(found, targets, asks, where)
    parts, rows = _cut(raw, options)
    train_rows = rows["train"].numpy()
    told: list[Notice] = list(notices)
    made = []
    for column in inputs:
        one, said = column_of(
            column, found["train"], train_rows, is_category=column in categorical, where=where
        )
        made.append(one)
        told += [Notice("constant", "train", 1, said)] if said else []
    preprocessing: dict[str, Any] = {"kind": "table", "columns": [one.describe() for one in made]}
    if asks == VALUES:
        raw, preprocessing["targets"] = standardized(raw, raw["train"][rows["train"]], names, key="target")
    weights = _weights(
        found["train"], weight_column, class_weights, raw["train"], rows["train"], names, where
    )
    sources = {
        split: _source(split, found[source], rows[split], raw[source], made, weights, told)
        for split, source in parts.items()
    }
    if unlabelled_path is not None:
        part = _unlabelled(unlabelled_path, inputs, told)
        rows["unlabelled"] = torch.arange(len(part))
        placeholders = without_labels(len(part), raw["train"])
        sources["unlabelled"] = _source(
            "unlabelled", part, rows["unlabelled"], placeholders, made, None, told
        )
    kept = {"num_classes", "input_shape", "allow_overlap"}
    return assemble(
        name,
        sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        unlabelled=sources.get("unlabelled"),
        class_names=names,
        mean=[0.0],
        std=[1.0],
        pixel_max=1,
        notices=told,
        preprocessing=preprocessing,
        **{key: value for key, value in options.items() if key in kept},  # pyright: ignore[reportArgumentType]
    )


def _unlabelled(path: str, inputs: Sequence[str], notices: list[Notice]) -> Any:
    """The rows of a file without labels, as an Arrow table."""
    with of_unlabelled():
        found, told = read_tables(path)
    missing = [name for name in inputs if name not in found["train"].column_names]
    if missing:
        raise OptionError(KEY, path, f"rows with the columns of the inputs, {', '.join(missing)} among them")
    notices += told
    check_values(found["train"], inputs, path)
    return found["train"]


def _asked(train: Any, targets: Sequence[str]) -> str:
    """What a target is, where no task says it."""
    if len(targets) > 1:
        binary = all(
            is_number(train[t].type) and set(train[t].unique().to_pylist()) <= {0, 1} for t in targets
        )
        return LABELS if binary else VALUES
    kind = train[targets[0]].type
    whole = str(kind).startswith(("int", "uint", "bool"))
    few = whole and len(train[targets[0]].unique()) <= _FEW_CLASSES
    return CLASSES if few or not is_number(kind) else VALUES


def _check_target(found: Mapping[str, Any], targets: Sequence[str], asks: str, where: str) -> None:
    if asks not in (CLASSES, LABELS, VALUES):
        raise OptionError("asks", asks, f"{CLASSES}, {LABELS} or {VALUES}: a table has nothing else")
    one_class = asks == CLASSES and len(targets) == 1
    for part in found.values():
        for target in targets:
            kind = part[target].type
            if one_class and not (is_text(kind) or is_number(kind)):
                raise OptionError(
                    "target", target, f"a column of strings or whole numbers, not {kind}, in {where}"
                )
            if not one_class and not is_number(kind):
                raise OptionError(
                    "target", target, f"a column of numbers for this task, not {kind}, in {where}"
                )
            values = part[target].to_pylist() if one_class and is_number(kind) else []
            broken = [value for value in values if value != int(value)]
            if broken:
                expected = f"whole numbers for classes, not {broken[0]}; write task=regression for numbers"
                raise OptionError("target", target, expected)


def _targets(
    found: Mapping[str, Any], targets: Sequence[str], asks: str, where: str
) -> tuple[list[str], dict[str, Tensor]]:
    """Names of classes, labels or values, and the targets of each split: [N] int64 or [N, D] float32."""
    if asks == CLASSES and len(targets) == 1:
        (target,) = targets
        classes = sorted(found["train"][target].unique().to_pylist())
        number = {value: place for place, value in enumerate(classes)}
        made = {}
        for split, part in found.items():
            values = part[target].to_pylist()
            other = [value for value in values if value not in number]
            if other:
                expected = f"classes that train has, not {other[0]!r} as in the {split} split of {where}"
                raise OptionError("target", target, expected)
            made[split] = torch.tensor([number[value] for value in values], dtype=torch.int64)
        return [str(value) for value in classes], made
    made = {
        split: torch.from_numpy(np.stack([numbers(part, target) for target in targets], axis=1)).float()
        for split, part in found.items()
    }
    for split, values in made.items():
        if asks == CLASSES:
            check_probabilities(values.numpy(), targets, "target", f"the {split} split of {where}")
        outside = ((values != 0) & (values != 1)).nonzero() if asks == LABELS else []
        if len(outside):
            row, place = outside[0].tolist()
            said = f"not {values[row, place]:g} in row {row} of the {split} split of {where}"
            raise OptionError("target", targets[place], f"labels of 0 or 1, {said}")
    return list(targets), made


def _cut(raw: Mapping[str, Tensor], options: TableOptions) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Of each split the one that it is read from, and its rows; what is not there is cut from train."""
    rows = torch.arange(len(raw["train"]))
    parts, chosen = {"train": "train"}, {}
    for split in ("test", "validation"):
        if split in raw:
            parts[split], chosen[split] = split, torch.arange(len(raw[split]))
            continue
        is_test = split == "test"
        rows, chosen[split] = cut_rows(
            split,
            raw["train"][rows],
            rows,
            fraction=options.get("test_fraction" if is_test else "validation_fraction"),
            count=None if is_test else options.get("validation_count"),
            seed=0 if is_test else options.get("split_seed", 0),
        )
        parts[split] = "train"
    return parts, {"train": rows, **chosen}


def _source(
    split: str,
    part: Any,
    rows: Tensor,
    targets: Tensor,
    columns: Sequence[Column],
    weights: Tensor | None,
    notices: list[Notice],
) -> Source:
    chosen = part.take(rows.numpy())
    values = {
        c.name: numbers(chosen, c.name) if c.categories is None else chosen[c.name].to_pylist()
        for c in columns
    }
    pixels, unknown = encoded(columns, values)
    for name, count in unknown.items():
        text = f"{split}: {count:,} values of {name} are categories that train does not have"
        notices.append(Notice("unseen", split, count, text))
    return Source(torch.from_numpy(pixels), targets[rows], weights=weights if split == "train" else None)


def _weights(
    train: Any,
    column: str | None,
    by_class: Sequence[float] | str | None,
    targets: Tensor,
    rows: Tensor,
    names: Sequence[str],
    where: str,
) -> Tensor | None:
    """[N] float32 of the training rows."""
    own = None
    if column is not None:
        if not is_number(train[column].type):
            raise OptionError("weight_column", column, f"a column of numbers in {where}")
        own = torch.from_numpy(numbers(train, column)[rows.numpy()]).float()
        if float(own.min()) < 0:
            raise OptionError("weight_column", column, f"numbers >= 0, not {float(own.min()):g}")
    if by_class is None:
        return own
    weights = weights_of_classes(by_class, targets[rows], names)[targets[rows]]
    return weights if own is None else own * weights

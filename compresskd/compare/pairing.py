"""Paired tests between groups: the same seeds on the same test samples, against one reference group."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskd.compare.comparison import Comparison
from compresskd.compare.grouping import Group
from compresskd.compare.keys import UnknownKeyError, full_key
from compresskd.compare.numbers import lower_is_better
from compresskd.compare.predictions import PredictionsError, Scored, read_scores
from compresskd.compare.statistics import Bootstrap, Summary, holm, mcnemar, paired_bootstrap, summarize
from compresskd.compare.study import Entry
from compresskd.run.flat import canonical

MAX_TESTS = 50  # groups tested, in the order of the table; Holm counts the others as well
MAX_PAIRS = 25  # runs compared sample by sample in one test: groups that `--by` makes may hold hundreds
BASELINE = "train"
_ROUNDING = 5e-4  # recorded accuracies may be rounded to a tenth of a percent


@dataclass(frozen=True, slots=True)
class McNemar:
    """One pair of runs: samples that only the group, only the reference gets right; p exact, and after Holm."""

    unit: str
    group_only: int
    reference_only: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class PairedTest:
    """The mean score of a test sample in a group minus the reference's, or why it is `impossible` to say.

    bootstrap: over test samples and seeds. over_seeds: the differences per seed (Student interval).
    p_holm: the bootstrap's p-value after Holm's correction. notes: pairs that had to be left out.
    """

    group: Group
    pairs: int
    impossible: str | None
    bootstrap: Bootstrap | None
    over_seeds: Summary | None
    p_holm: float | None
    mcnemar: tuple[McNemar, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PairedTests:
    """All tests against one reference; `untested` groups lie further down the table and count in Holm."""

    reference: Group | None
    why: str
    tests: tuple[PairedTest, ...]
    untested: int


def against_reference(comparison: Comparison, max_tests: int = MAX_TESTS) -> PairedTests:
    """Test the first groups of the table against the reference that the options name.

    Raises:
        UnknownKeyError: `--reference` names no group, or several.
    """
    reference, why = choose_reference(comparison)
    if reference is None:
        return PairedTests(None, why, (), 0)
    others = [group for group in comparison.groups if group is not reference]
    scores = _Scores(comparison, reference)
    tests = [_test(comparison, group, reference, scores) for group in others[:max_tests]]
    return PairedTests(reference, why, _corrected(tests, len(others)), max(0, len(others) - max_tests))


def choose_reference(comparison: Comparison) -> tuple[Group | None, str]:
    """The reference group and why it is the one (or why there is none)."""
    wanted = comparison.options.reference
    judged = [group for group in comparison.groups if group.mean(comparison.metric) is not None]
    if not judged:
        return None, f"no finished run has {comparison.metric}"
    sign = 1 if lower_is_better(comparison.metric) else -1
    ranked = sorted(judged, key=lambda group: sign * (group.mean(comparison.metric) or 0.0))
    baselines = [group for group in ranked if _is_baseline(comparison, group)]
    if wanted == "baseline" and not baselines:
        raise UnknownKeyError(f"--reference: no finished group of strategy={BASELINE} to be the baseline")
    if wanted == "baseline" or (wanted is None and 0 < len(baselines) < len(judged)):
        baselines.sort(
            key=lambda group: _is_quantized(comparison, group)
        )  # in floating point where there are such
        return baselines[0], f"the baseline (strategy={BASELINE})"
    if wanted in (None, "best"):
        return ranked[0], f"the best {comparison.metric.replace('_', ' ')}"
    return _named(comparison, wanted, judged), "chosen by --reference"


def _is_baseline(comparison: Comparison, group: Group) -> bool:
    return {entry.strategy for entry in comparison.entries(group.counted)} == {BASELINE}


def _is_quantized(comparison: Comparison, group: Group) -> bool:
    return any(entry.kind == "Quantize" for entry in comparison.entries(group.counted))


def _named(comparison: Comparison, wanted: str, judged: Sequence[Group]) -> Group:
    study = comparison.study
    known = {*study.base, *(key for entry in study.entries for key in entry.config), *comparison.by}
    conditions = {}
    for part in wanted.split(","):
        key, equals, text = part.partition("=")
        if not equals:
            raise UnknownKeyError(f"--reference: expected best, baseline or KEY=VALUE,..., got {wanted!r}")
        conditions[full_key(key.strip(), known, "--reference")] = text.strip()
    fitting = [group for group in judged if _fits(comparison, group, conditions)]
    if len(fitting) == 1:
        return fitting[0]
    shown = "; ".join(comparison.label(group) for group in (fitting or judged)[:8])
    if fitting:
        raise UnknownKeyError(f"--reference: {wanted!r} fits {len(fitting)} groups, say more: {shown}")
    raise UnknownKeyError(f"--reference: no finished group is {wanted!r}; there is: {shown}")


def _fits(comparison: Comparison, group: Group, conditions: Mapping[str, str]) -> bool:
    for key, text in conditions.items():
        if key in comparison.by:
            found = {group.values[comparison.by.index(key)]}
        else:
            found = {comparison.study.value(entry, key) for entry in comparison.entries(group.counted)}
        if found != {canonical(_number(text))}:
            return False
    return True


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


class _Scores:
    """Scores of test samples by entry, higher is better; the reference's are read once."""

    def __init__(self, comparison: Comparison, reference: Group):
        self._kept = {entry.directory for entry in comparison.entries(reference.counted)}
        self._cache: dict[tuple[Path, str], Scored] = {}

    def of(self, entry: Entry) -> Scored:
        key = (entry.directory, entry.stage)
        if key in self._cache:
            return self._cache[key]
        scored = read_scores(entry.directory, entry.stage)
        recorded = entry.numbers.get("test_accuracy")
        right = scored.scores.mean()
        if scored.targets is not None and recorded is not None and abs(recorded - right) > _ROUNDING:
            raise PredictionsError(f"its predictions are right in {right:.2%}, recorded are {recorded:.2%}")
        if entry.directory in self._kept:
            self._cache[key] = scored
        return scored


def _test(comparison: Comparison, group: Group, reference: Group, scores: _Scores) -> PairedTest:
    pairs, reason, notes = _pairs(comparison, group, reference)
    differences: list[NDArray[Any]] = []
    single: list[McNemar] = []
    for unit, entry, other in pairs:
        try:
            differences.append(_difference(scores, entry, other))
        except PredictionsError as error:
            notes.append(str(error))
            continue
        if differences[-1].dtype != np.int8:  # no counts of right and wrong
            continue
        wins, losses = int((differences[-1] > 0).sum()), int((differences[-1] < 0).sum())
        single.append(McNemar(unit, wins, losses, mcnemar(wins, losses), 1.0))
    if not differences:
        reason = reason or "; ".join(dict.fromkeys(notes))
        return PairedTest(group, 0, reason, None, None, None, (), ())
    difference_SN = np.stack(differences)
    limits = {"low": -1.0, "high": 1.0} if difference_SN.dtype == np.int8 else {}
    return PairedTest(
        group,
        len(differences),
        None,
        paired_bootstrap(difference_SN),
        summarize([float(difference) for difference in difference_SN.mean(axis=1)], **limits),
        None,
        tuple(single),
        tuple(dict.fromkeys(notes)),
    )


def _pairs(
    comparison: Comparison, group: Group, reference: Group
) -> tuple[list[tuple[str, Entry, Entry]], str | None, list[str]]:
    """Pairs (unit, run of the group, run of the reference); why there are none; what was left out."""
    if not group.counted:
        codes = {flag.code for index in group.members for flag in comparison.flags[index]}
        return [], f"no run that counts ({', '.join(sorted(codes))})", []
    sides = [
        dict(zip(side.units, comparison.entries(side.counted), strict=True)) for side in (group, reference)
    ]
    for side, units in zip((group, reference), sides, strict=True):
        if len(units) < len(side.counted):
            repeated = [" ".join(unit) for unit, times in Counter(side.units).items() if times > 1]
            return [], f"several runs of one seed in a group ({', '.join(repeated[:3])})", []
    common = sorted(unit for unit in sides[0] if unit in sides[1] and unit[0] != "null")
    if not common:
        own, theirs = (", ".join(sorted({unit[0] for unit in units})) for units in sides)
        what = "seed" if len(reference.units[0]) == 1 else "seed with equal other keys"
        return [], f"no {what} in common (seeds {own}; the reference has {theirs})", []
    alone = len(sides[0]) + len(sides[1]) - 2 * len(common)
    notes = [f"{alone} run{'s' * (alone > 1)} without a partner of the same seed"] if alone else []
    if len(common) > MAX_PAIRS:
        notes.append(f"{MAX_PAIRS} of {len(common)} pairs, evenly chosen")
        step = (len(common) - 1) / (MAX_PAIRS - 1)
        common = [common[round(index * step)] for index in range(MAX_PAIRS)]
    return [(" ".join(unit), sides[0][unit], sides[1][unit]) for unit in common], None, notes


def _difference(scores: _Scores, entry: Entry, other: Entry) -> NDArray[Any]:
    """[N] score by `entry` minus score by `other`; -1, 0, 1 in int8 where a score is right or wrong."""
    if entry.test is None or other.test is None:
        raise PredictionsError("a record has no test_fingerprint")
    if entry.test != other.test:
        raise PredictionsError(f"other test set ({entry.test}, the reference {other.test})")
    own, theirs = _read(scores, entry), _read(scores, other)
    if own.targets is None or theirs.targets is None:
        if own.scores.shape != theirs.scores.shape:
            raise PredictionsError(f"{own.scores.size} scores, the reference has {theirs.scores.size}")
        return own.scores.astype(np.float64) - theirs.scores
    if not np.array_equal(own.targets, theirs.targets):
        raise PredictionsError(f"targets differ between {entry.run} and {other.run}")
    return own.scores.astype(np.int8) - theirs.scores.astype(np.int8)


def _read(scores: _Scores, entry: Entry) -> Scored:
    try:
        return scores.of(entry)
    except PredictionsError as error:
        raise PredictionsError(f"{entry.run}: {error}") from None


def _corrected(tests: Sequence[PairedTest], num_groups: int) -> tuple[PairedTest, ...]:
    """Holm over the groups: once for the bootstrap, and once in each seed for McNemar."""
    hypotheses = num_groups - sum(test.bootstrap is None for test in tests)
    singles: defaultdict[str, dict[int, float]] = defaultdict(dict)
    boots = {index: test.bootstrap.p_value for index, test in enumerate(tests) if test.bootstrap}
    for index, test in enumerate(tests):
        for single in test.mcnemar:
            singles[single.unit][index] = single.p_value
    p_holm = _holm(boots, hypotheses)
    of_unit = {unit: _holm(p_values, hypotheses) for unit, p_values in singles.items()}
    return tuple(
        replace(
            test,
            p_holm=p_holm.get(index),
            mcnemar=tuple(replace(one, p_holm=of_unit[one.unit][index]) for one in test.mcnemar),
        )
        for index, test in enumerate(tests)
    )


def _holm(p_values: Mapping[int, float], num_hypotheses: int) -> dict[int, float]:
    return dict(zip(p_values, holm(list(p_values.values()), num_hypotheses), strict=True))

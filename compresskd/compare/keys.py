"""Configuration keys: flat canonical values, the keys that differ, and which of them tell groups apart."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ABSENT = "–"  # what a key shows in a record that lacks it
_FIRST = ("strategy", "teacher", "student", "data", "rank", "bits", "epochs", "kd", "compress", "quant")
_PATH_NAMES = frozenset({"path", "dir", "directory", "folder", "file", "root", "cache", "output", "outputs"})
_VOLATILE_NAMES = frozenset({"num_workers", "workers", "verbose", "progress", "log", "log_level", "resume"})


class UnknownKeyError(ValueError):
    """A key that the user named and that no record has."""


def is_volatile(key: str, column: Iterable[str]) -> bool:
    """Keys that say where, how loudly or in which order of sums a run ran, not what it computed.

    A `weights` file is not among them: it decides the teacher.
    """
    if key.startswith(("hydra.", "tt.", "measure.")):
        return True
    last = key.rpartition(".")[2]
    if last in _PATH_NAMES or last.endswith(("_path", "_dir", "_file")) or last in _VOLATILE_NAMES:
        return True
    return last != "weights" and all(
        value.startswith("/") for value in column if value not in (ABSENT, "null")
    )


@dataclass(frozen=True)
class Keys:
    """The configuration keys of a set of records.

    differing: key -> its value in each record (ABSENT where there is none), only keys with several values.
    grouping: the differing keys that tell groups apart; every other one follows from these.
    following: differing keys that add no further distinction (such as a stage's rank, equal to `rank`).
    ignored: differing keys that do not separate groups: seeds, paths and the like.
    """

    differing: Mapping[str, Sequence[str]]
    grouping: tuple[str, ...]
    following: tuple[str, ...]
    ignored: tuple[str, ...]


def analyse(
    base: Mapping[str, str], changes: Sequence[Mapping[str, str]], seeds: Sequence[str], swept: Iterable[str]
) -> Keys:
    """Sort the differing keys of flat configs into grouping, following and ignored ones.

    Args:
        base: one flat config, of any record.
        changes: how the config of each record differs from `base` (see `change`).
        seeds: the seed of each record, as canonical text.
        swept: keys that overrides named: always shown if they differ, and first.
    """
    columns = {key: values(key, base, changes) for key in sorted({key for one in changes for key in one})}
    differing = {key: column for key, column in columns.items() if len(set(column)) > 1}
    swept_set = set(swept)
    ignored = [key for key, column in differing.items() if _ignored(key, column, seeds)]
    rest = sorted(differing.keys() - set(ignored), key=lambda key: _order(key, swept_set))
    partition = [0] * len(changes)
    grouping, following = [], []
    for key in rest:
        refined = _refine(partition, differing[key])
        if max(refined, default=0) > max(partition, default=0) or key in swept_set:
            grouping.append(key)
            partition = refined
        else:
            following.append(key)
    return Keys(differing, tuple(grouping), tuple(following), tuple(sorted(ignored)))


def change(base: Mapping[str, str], flat: Mapping[str, str]) -> dict[str, str]:
    """What `flat` has otherwise than `base`: ten thousand configs are kept as their differences only."""
    changed = {key: value for key, value in flat.items() if base.get(key) != value}
    changed.update((key, ABSENT) for key in base.keys() - flat.keys())
    return changed


def values(key: str, base: Mapping[str, str], changes: Sequence[Mapping[str, str]]) -> list[str]:
    """The value of `key` in each record."""
    default = base.get(key, ABSENT)
    return [changed.get(key, default) for changed in changes]


def _ignored(key: str, column: Sequence[str], seeds: Sequence[str]) -> bool:
    last = key.rpartition(".")[2]
    if key == "seed" or is_volatile(key, column):
        return True
    if ABSENT in column and {*column} <= {ABSENT, "null", "false"}:
        return True  # an option that came with a later version, and is off
    return (last == "seed" or last.endswith("_seed")) and all(
        value in (seed, ABSENT) for value, seed in zip(column, seeds, strict=True)
    )


def _order(key: str, swept: set[str]) -> tuple[bool, int, int, str]:
    top = key.partition(".")[0]
    known = _FIRST.index(top) if top in _FIRST else len(_FIRST)
    return (key not in swept, key.count("."), known, key)


def _refine(partition: Sequence[int], column: Sequence[str]) -> list[int]:
    numbers: dict[tuple[int, str], int] = {}
    return [numbers.setdefault(pair, len(numbers)) for pair in zip(partition, column, strict=True)]


def full_key(wanted: str, known: Iterable[str], option: str) -> str:
    """The full name of a key given in full or by its unique ending (`alpha` for `kd.alpha`).

    Raises:
        UnknownKeyError: no such key, with the nearest names; or several keys end so.
    """
    known = set(known)
    if wanted in known:
        return wanted
    ending = sorted(key for key in known if key.endswith("." + wanted))
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UnknownKeyError(
            f"{option}: {wanted!r} is the end of several keys, write one of {_some(ending)}"
        )
    raise UnknownKeyError(f"{option}: no record has {wanted!r}{_nearest(wanted, known)}")


def _nearest(wanted: str, known: set[str]) -> str:
    by_ending = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    close = difflib.get_close_matches(wanted, known, 3, 0.6)
    close += [by_ending[end] for end in difflib.get_close_matches(wanted, by_ending, 3, 0.6)]
    close = list(dict.fromkeys(close))[:3]
    if close:
        return f"; did you mean {_some(close)}?"
    return f"; there is {_some(sorted(known, key=lambda key: (key.count('.'), key)))}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")

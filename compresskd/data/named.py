"""Which split of a set is train, validation and test, found by their names."""

from collections.abc import Collection

from compresskd.data.notice import Notice
from compresskd.options import OptionError, did_you_mean

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def named_splits(
    present: Collection[str],
    what: str,
    *,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
) -> tuple[dict[str, str], list[Notice]]:
    """The name of train, and of validation and test where they are not to be cut from it; what is worth telling.

    A name that is given is taken; the others are found among those that are `present`. Where no split is a test, the
    validation split is the test, and validation is to be cut from train: what chooses an epoch must not score it.

    Raises OptionError for a name that is not there, one that is named twice, and a set without a train split.
    """
    given = {"train": train_split, "validation": validation_split, "test": test_split}
    for split, name in given.items():
        if name is not None and name not in present:
            expected = f"a split of {what}: {', '.join(sorted(present))}{did_you_mean(name, present)}"
            raise OptionError(f"{split}_split", name, expected)
        if name is not None and list(given.values()).count(name) > 1:
            expected = "three different splits, or null: what one of them chooses must not score it"
            raise OptionError(f"{split}_split", name, expected)
    taken = [name for name in given.values() if name is not None]
    found = {split: name or _like(split, present, taken) for split, name in given.items()}
    if found["train"] is None and len(present) == 1:
        found["train"] = next(iter(present))
        found = {split: name for split, name in found.items() if split == "train" or name != found["train"]}
    if found["train"] is None:
        expected = (
            f"one of the splits of {what}, which are {', '.join(sorted(present))}: data.train_split=NAME"
        )
        raise OptionError("train_split", None, expected)
    notices = []
    if found.get("test") is None and found.get("validation") is not None and validation_split is None:
        found["test"] = found.pop("validation")
        text = (
            f"{what} has no test split: its split {found['test']!r} is the test, validation is cut from train"
        )
        notices.append(Notice("splits", "test", 1, text))
    names = {split: name for split, name in found.items() if name is not None}
    unread = sorted(set(present) - set(names.values()))
    if unread:
        notices.append(Notice.of("beside", None, unread, f"splits that are not read: {', '.join(unread)}"))
    return names, notices


def _like(split: str, present: Collection[str], taken: Collection[str]) -> str | None:
    by_lower = {name.lower(): name for name in present if name not in taken}
    return next((by_lower[name] for name in _NAMES[split] if name in by_lower), None)

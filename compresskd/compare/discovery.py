"""Find records below any number of directories, each once, whatever the links between them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Problem:
    """A path that gave nothing to compare, and why."""

    path: Path
    reason: str


def find_records(roots: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """Every record.json at or below `roots`, sorted, and the roots and folders that could not be searched.

    A folder or file reached twice (overlapping roots, symbolic links, loops of them) counts once.
    """
    problems: list[Problem] = []
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for root in roots:
        try:
            found.extend(_below(root, seen, problems))
        except OSError as error:
            problems.append(Problem(root, f"cannot be read: {error.strerror or error}"))
    return sorted(found), problems


def _below(root: Path, seen: set[tuple[int, int]], problems: list[Problem]) -> list[Path]:
    if not root.exists():
        problems.append(Problem(root, "does not exist"))
        return []
    if not root.is_dir():
        if root.suffix != ".json":
            problems.append(Problem(root, f"neither a folder nor a {RECORD}"))
            return []
        return [root] if _is_new(os.stat(root), seen) else []
    if not _is_new(os.stat(root), seen):
        return []
    before = len(problems)
    found = list(_search(root, seen, problems))
    if not found and before == len(problems):
        problems.append(Problem(root, f"holds no {RECORD}, at any depth, that was not found already"))
    return found


def _search(root: Path, seen: set[tuple[int, int]], problems: list[Problem]) -> Iterator[Path]:
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            problems.append(Problem(Path(folder), f"cannot be listed: {error.strerror or error}"))
            continue
        for entry in listed:
            try:
                if entry.is_dir():
                    waiting.extend([entry.path] if _is_new(entry.stat(), seen) else [])
                elif entry.name == RECORD and _is_new(entry.stat(), seen):
                    yield Path(entry.path)
            except OSError as error:  # a link to itself, a file that went away meanwhile
                if entry.name == RECORD:
                    problems.append(Problem(Path(entry.path), f"cannot be read: {error.strerror or error}"))


def _is_new(about: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    identity = (about.st_dev, about.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True

"""What lies in the folders of an image set: images by class, and what is there besides."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compresskd.data.notice import Notice, shown
from compresskd.options import OptionError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
# What systems leave in folders unasked; hidden names begin with a dot.
_CLUTTER = ("Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir")


@dataclass
class Findings:
    """What is in the folders of one split and is no image of a class."""

    split: str
    other: list[Path] = field(default_factory=list)  # files of other kinds
    special: list[Path] = field(default_factory=list)  # pipes, sockets, devices
    loops: list[Path] = field(default_factory=list)  # links to a folder that they lie in
    outside: list[Path] = field(default_factory=list)  # images beside the folders of classes

    def notices(self) -> Iterator[Notice]:
        """For the user and the record."""
        kinds = Counter(file.suffix.lower() or "no suffix" for file in self.other).most_common(5)
        told = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        for kind, found, text in (
            ("other", self.other, f"not read, since of another kind ({told})"),
            ("special", self.special, "not read, since a pipe, socket or device"),
            ("loop", self.loops, "not followed, since a link back to a folder that it lies in"),
            ("outside", self.outside, "not read, since an image beside the folders of classes"),
        ):
            if found:
                names = [shown(path) for path in found]
                some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                yield Notice.of(kind, self.split, names, f"{self.split}: {len(names):,} {text}: {some}")


def folders(parent: Path) -> list[Path]:
    """Folders in `parent`, links among them, by name. Raises ValueError for a link that leads nowhere."""
    found = []
    for entry in _entries(parent):
        child = Path(entry)
        if entry.is_symlink() and not child.exists() and not _is_image(entry):
            raise OptionError(
                "path",
                str(child),
                f"no link to {shown(os.readlink(child))}, which is not there; mend or remove it",
            )
        if entry.is_dir():
            found.append(child)
    return found


def class_files(folder: Path, class_folders: Sequence[Path], findings: Findings) -> list[list[Path]]:
    """Images below each class folder, sorted.

    Links are followed, each folder once; a link that leads nowhere counts as an image if it is called like one.
    Raises ValueError where two classes are the same folder, and for folders that cannot be read.
    """
    known: dict[tuple[int, int], Path] = {}
    for child in class_folders:
        other = known.setdefault(_identity(child), child)
        if other is not child:
            expected = (
                f"another folder than {shown(other)}: its images would be of two classes; remove the link"
            )
            raise OptionError("path", str(child), expected)
    findings.outside += [Path(file) for file in _entries(folder) if _is_image(file) and not file.is_dir()]
    return [
        sorted(_walk(child, {_identity(folder), _identity(child)}, {_identity(child)}, findings))
        for child in class_folders
    ]


def image_files(folder: Path, findings: Findings) -> list[Path]:
    """All images in a folder and below, sorted. Raises ValueError for folders that cannot be read."""
    return sorted(_walk(folder, {_identity(folder)}, {_identity(folder)}, findings))


def alike(names: Sequence[str]) -> list[str]:
    """Pairs of names that differ in case, or in the Unicode form of the same letters, alone."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(plain(name), []).append(name)
    return [" and ".join(map(repr, map(shown, found))) for found in by_form.values() if len(found) > 1]


def plain(name: str) -> str:
    """The name without case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _walk(
    folder: Path, above: set[tuple[int, int]], seen: set[tuple[int, int]], findings: Findings
) -> Iterator[Path]:
    for entry in _entries(folder):
        child = Path(entry)
        if entry.is_dir():
            identity = _identity(child)
            if identity in above:
                findings.loops.append(child)
            elif identity not in seen:
                seen.add(identity)
                yield from _walk(child, above | {identity}, seen, findings)
        elif not entry.is_file() and child.exists():
            findings.special.append(child)
        elif _is_image(entry):
            yield child
        else:
            findings.other.append(child)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """By name, without what is hidden or clutter. They know of what kind they are without another system call."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise OptionError("path", str(folder), f"a folder that can be read ({error.strerror})") from error
    return [child for child in found if not child.name.startswith(".") and child.name not in _CLUTTER]


def _is_image(file: os.DirEntry[str]) -> bool:
    return os.path.splitext(file.name)[1].lower() in SUFFIXES


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino

"""The files that the user's own code consists of, found without running any of it.

A module of the user's own is one that is not installed: it lies in a folder of the user's. Its file counts, of a
package every file, and so on with what these import, wherever the import stands in them. An import that is put
together while the code runs is not seen, nor a data file. What is installed is covered by its name alone: no directory
can install it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from pathlib import Path

_OF_PYTHON = ("stdlib", "platstdlib", "purelib", "platlib")
_OF_PACKAGES = ("site-packages", "dist-packages")


def source_digests(packages: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file of the user's own that the packages consist of, by its path from the import's folder."""
    found: dict[str, str] = {}
    waiting, seen = sorted(packages, reverse=True), set(packages)
    while waiting:
        for name, content in _files(waiting.pop()):
            found[name] = hashlib.sha256(content).hexdigest()
            imported = _imported(content) - seen
            seen |= imported
            waiting += sorted(imported)
    return dict(sorted(found.items()))


def _files(package: str) -> Iterator[tuple[str, bytes]]:
    """Path from the import's folder and content of each file of a package or module; none where it is installed."""
    spec = _spec(package)
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        top = Path(folder)
        for path in sorted(top.rglob("*")) if _is_own(top) else ():
            if (
                path.name.endswith(tuple(all_suffixes()))
                and "__pycache__" not in path.parts
                and path.is_file()
            ):
                yield path.relative_to(top.parent).as_posix(), path.read_bytes()
    if not spec.submodule_search_locations and spec.origin is not None:
        path = Path(spec.origin)
        if path.is_file() and _is_own(path):
            yield path.name, path.read_bytes()


def _spec(package: str) -> ModuleSpec | None:
    """Where a package would be imported from: the working directory is the last place."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of the program itself, or of a module that was made by hand
        file = getattr(sys.modules.get(package), "__file__", None)
        return None if file is None else ModuleSpec(package, None, origin=file)
    return spec or PathFinder.find_spec(package, [os.getcwd()])


def _is_own(path: Path) -> bool:
    return not any(path.resolve().is_relative_to(folder) for folder in _installed())


def _installed() -> Iterator[Path]:
    """The folders that packages are installed to, and that of compresskd; the working directory is none of them."""
    named = [place for place in sys.path if os.path.basename(place) in _OF_PACKAGES and place != os.getcwd()]
    standard = [*map(sysconfig.get_path, _OF_PYTHON), *site.getsitepackages(), site.getusersitepackages()]
    return (Path(place).resolve() for place in (*standard, *named, Path(__file__).parents[1]))


def _imported(content: bytes) -> set[str]:
    """The packages that a file's code imports, relative imports apart: those stay in the package itself."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled, or such that it cannot run
        return set()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}

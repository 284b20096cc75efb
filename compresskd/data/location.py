"""Where a set of samples is, and what `datasets` reads there: a folder, a file, or a set of the hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from compresskd.data.digest import files_digest
from compresskd.options import OptionError

_KINDS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
_EXAMPLE = "train-00000-of-00001.parquet"


@dataclass(frozen=True, eq=False)
class Location:
    """A set of samples that can be opened.

    Attributes:
        what: its name in messages.
        identify: gives a text that two share if they hold the same files.
        load: gives the splits by name.
    """

    what: str
    identify: Callable[[], str]
    load: Callable[[], Mapping[str, Any]]

    @cached_property
    def digest(self) -> str:
        """Two share it if they hold the same files."""
        return self.identify()

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        """The splits by name. Raises OptionError where there is nothing that can be read."""
        return self.load()


def located(id: str | None, config: str | None, revision: str | None, path: str | None) -> Location:
    """The folder or file `path`, else the set `id` of the hub. Raises OptionError where neither is named."""
    if path is not None:
        if revision is not None:
            raise OptionError("revision", revision, f"null with path={path}: a folder has none")
        root = Path(path).expanduser().resolve()
        if root.is_file():
            return Location(path, lambda: files_digest(root.parent, [root]), lambda: _of_file(root))
        return Location(
            path, lambda: files_digest(root, _files(root)) + str(config), lambda: _of_folder(root, config)
        )
    if id is None:
        raise OptionError("id", None, "OWNER/NAME of a set of the hub, or a local folder: data.path=DIR")
    found = Location(id, lambda: _fingerprints(found.loaded), lambda: _of_hub(id, config, revision))
    return found


def _files(root: Path) -> list[Path]:
    """All that are not hidden."""
    if not root.is_dir():
        raise OptionError("path", str(root), f"a folder of parquet files such as {_EXAMPLE}")
    return sorted(
        file
        for file in root.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


def _of_folder(root: Path, config: str | None) -> Mapping[str, Any]:
    kinds = {file.suffix.lower() for file in _files(root)} & _KINDS.keys()
    from datasets import load_dataset

    try:
        # Streaming reads the files where they are; a full load would copy them into one more cache first.
        return cast(Mapping, load_dataset(str(root), config, streaming=True, **_options(kinds)))
    except Exception as error:
        said = (
            f"a data set that can be read ({type(error).__name__}: {error}): parquet files such as {_EXAMPLE}"
        )
        raise OptionError("path", str(root), said) from error


def _of_file(file: Path) -> Mapping[str, Any]:
    """A file is the split 'train'."""
    kind = _KINDS.get(file.suffix.lower())
    if kind is None:
        raise OptionError("path", str(file), f"a folder, or a file of {', '.join(_KINDS)}")
    from datasets import load_dataset

    try:
        files = {"train": str(file)}
        options = _options({file.suffix.lower()})
        return cast(Mapping, load_dataset(kind, data_files=files, streaming=True, **options))
    except Exception as error:
        said = f"a file that can be read ({type(error).__name__}: {error})"
        raise OptionError("path", str(file), said) from error


def _options(suffixes: set[str]) -> dict[str, Any]:
    """Lines of plain text keep their ends: the text is what stands in the file."""
    return {"keep_linebreaks": True} if suffixes == {".txt"} else {}


def _of_hub(id: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    """A set of the hub, or what an earlier download left of it on this machine."""
    from datasets import load_dataset

    try:
        return cast(Mapping, load_dataset(id, config, revision=revision))
    except Exception as error:
        said = (
            f"a set that can be read from the Hugging Face hub ({type(error).__name__}: {error}); without a"
        )
        expected = f"{said} connection write data.path=DIR, a folder of its files"
        raise OptionError("id", id, expected) from error


def _fingerprints(loaded: Mapping[str, Any]) -> str:
    return repr({split: part._fingerprint for split, part in loaded.items()})

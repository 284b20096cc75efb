"""Where a set of samples is, and what `datasets` reads there: a folder, a file, or a set of the hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from compresskd.data.digest import files_digest
from compresskd.options import OptionError

_KINDS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
_EXAMPLE = "train-00000-of-00001.parquet"


class Location(Protocol):
    """A set of samples that can be opened.

    what: its name in messages. digest: two share it if they hold the same files. loaded: the splits by name.
    """

    @property
    def what(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def loaded(self) -> Mapping[str, Any]: ...  # noqa: D102


def located(id: str | None, config: str | None, revision: str | None, path: str | None) -> Location:
    """The folder or file `path`, else the set `id` of the hub. Raises OptionError where neither is named."""
    if path is not None:
        if revision is not None:
            raise OptionError("revision", revision, f"null with path={path}: a folder has none")
        return _File(path) if Path(path).expanduser().is_file() else _Folder(path, config)
    if id is None:
        raise OptionError("id", None, "OWNER/NAME of a set of the hub, or a local folder: data.path=DIR")
    return _Hub(id, config, revision)


@dataclass(frozen=True)
class _Folder:
    """A set in a local folder."""

    what: str
    config: str | None

    @property
    def root(self) -> Path:
        return Path(self.what).expanduser().resolve()

    @property
    def digest(self) -> str:
        return files_digest(self.root, self.files) + str(self.config)

    @property
    def files(self) -> list[Path]:
        """All that are not hidden."""
        if not self.root.is_dir():
            raise OptionError("path", str(self.root), f"a folder of parquet files such as {_EXAMPLE}")
        return sorted(
            file
            for file in self.root.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(self.root).parts)
        )

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        # lines of plain text keep their ends: the text is what stands in the file
        plain = {file.suffix.lower() for file in self.files if file.suffix.lower() in _KINDS} == {".txt"}
        kept: dict[str, Any] = {"keep_linebreaks": True} if plain else {}
        from datasets import load_dataset

        try:
            # Streaming reads the files where they are; a full load would copy them into one more cache first.
            return cast(Mapping, load_dataset(str(self.root), self.config, streaming=True, **kept))
        except Exception as error:
            said = f"a data set that can be read ({type(error).__name__}: {error}): parquet files such as"
            raise OptionError("path", str(self.root), f"{said} {_EXAMPLE}") from error


@dataclass(frozen=True)
class _File:
    """A set in one file, which is its split 'train'."""

    what: str

    @property
    def root(self) -> Path:
        return Path(self.what).expanduser().resolve()

    @property
    def digest(self) -> str:
        return files_digest(self.root.parent, [self.root])

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        kind = _KINDS.get(self.root.suffix.lower())
        if kind is None:
            raise OptionError("path", str(self.root), f"a folder, or a file of {', '.join(_KINDS)}")
        from datasets import load_dataset

        kept: dict[str, Any] = {"keep_linebreaks": True} if kind == "text" else {}
        try:
            files = {"train": str(self.root)}
            return cast(Mapping, load_dataset(kind, data_files=files, streaming=True, **kept))
        except Exception as error:
            said = f"a file that can be read ({type(error).__name__}: {error})"
            raise OptionError("path", str(self.root), said) from error


@dataclass(frozen=True)
class _Hub:
    """A set of the hub, or what an earlier download left of it on this machine."""

    what: str
    config: str | None
    revision: str | None

    @property
    def digest(self) -> str:
        return repr({split: part._fingerprint for split, part in self.loaded.items()})

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        from datasets import load_dataset

        try:
            return cast(Mapping, load_dataset(self.what, self.config, revision=self.revision))
        except Exception as error:
            said = f"a set that can be read from the Hugging Face hub ({type(error).__name__}: {error}); without a"
            raise OptionError(
                "id", self.what, f"{said} connection write data.path=DIR, a folder of its files"
            ) from error

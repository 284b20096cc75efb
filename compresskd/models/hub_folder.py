"""Folders of models as Hugging Face lays them out, on this machine or fetched from the hub; nothing in them is run."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compresskd.options import OptionError

_CONFIG, _WEIGHTS = "config.json", ("model*.safetensors", "pytorch_model*.bin")
_FETCHED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
_READ_GGUF = ("gguf", "accelerate")  # packages
_CODE = "auto_map"  # in a configuration: the files of the folder whose code it would be built by


@dataclass(frozen=True)
class HubFolder:
    """A folder with a model.

    Attributes:
        id: as the user wrote it.
        path: of the folder.
        config: what its config.json says, or the header of its GGUF file.
        gguf: the name of the GGUF file that holds weights and configuration; None for safetensors.
    """

    id: str
    path: Path
    config: Mapping[str, Any]
    gguf: str | None = None

    @property
    def reading(self) -> dict[str, str]:
        """What `from_pretrained` must be told besides the path."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def has_weights(self) -> bool:
        """Whether there are any."""
        return any(self._weights())

    @property
    def labels(self) -> dict[int, str]:
        """The names of its outputs; empty where it has none of its own."""
        names = {int(number): str(name) for number, name in (self.config.get("id2label") or {}).items()}
        return {} if all(name == f"LABEL_{number}" for number, name in names.items()) else names

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the files of configuration and weights."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for file in self._weights():
            facts = file.stat()
            digest.update(f"{file.name} {_digest(file, facts.st_size, facts.st_mtime_ns)}\n".encode())
        return digest.hexdigest()[:16]

    def _weights(self) -> Iterator[Path]:
        if self.gguf is not None:
            yield self.path / self.gguf
        else:
            yield from sorted(file for pattern in _WEIGHTS for file in self.path.glob(pattern))


def hub_folder(id: str) -> HubFolder:
    """The folder that a path, or a name on the hub, means; of the hub it is fetched into the usual cache.

    Raises:
        OptionError: it is not there, cannot be reached, has no model in it, or one that needs code of its own.
    """
    path = Path(id).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(id, path)
    if not path.exists() and (path.is_absolute() or id.startswith((".", "~")) or id.count("/") > 1):
        raise OptionError("id", id, "a folder that is there, or the name of a model on the hub: OWNER/NAME")
    folder = path if path.exists() else _fetched(id)
    if (folder / _CONFIG).is_file():
        return HubFolder(id, folder, _config_of(id, folder / _CONFIG))
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return _of_gguf(id, files[0])
    expected = (
        "one of its GGUF files: " + ", ".join(str(f) for f in files[:5])
        if files
        else f"a folder with {_CONFIG}, as save_pretrained writes it, or with a GGUF file"
    )
    raise OptionError("id", id, expected)


def _fetched(id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(id, allow_patterns=list(_FETCHED)))
    except Exception as error:  # of the network, of the name, of the rights to read it
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(
            "id", id, f"a folder, or a model of the hub that can be reached ({reason})"
        ) from error


def _config_of(id: str, file: Path) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OptionError("id", id, f"a folder whose {_CONFIG} can be read: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise OptionError("id", id, f"a folder whose {_CONFIG} has a model_type")
    if _CODE in config and config["model_type"] not in CONFIG_MAPPING:
        own = "write a function of your own that returns the module: student=custom student._target_=my_module.make"
        raise OptionError(
            "id",
            id,
            f"an architecture of transformers, not {config['model_type']!r} by code of its own; {own}",
        )
    config.pop(_CODE, None)  # transformers has the architecture, and its code is the one that is run
    return config


def _of_gguf(id: str, file: Path) -> HubFolder:
    from transformers import AutoConfig

    missing = [name for name in _READ_GGUF if find_spec(name) is None]
    if missing:
        raise OptionError(
            "id", id, f"{' and '.join(missing)} to read GGUF files; write pip install {' '.join(missing)}"
        )
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # packages that it needs, architectures that it does not know
        reason = str(error).strip().partition("\n")[0]
        raise OptionError("id", id, f"a GGUF file that transformers reads ({reason})") from error
    return HubFolder(id, file.parent, json.loads(config.to_json_string(use_diff=False)), file.name)


@functools.lru_cache(maxsize=64)
def _digest(file: Path, size: int, modified: int) -> str:
    """Of a file's bytes, which the size and the time of its last change stand for."""
    del size, modified
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

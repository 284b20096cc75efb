"""What a stored model takes, and the final model of a run in both forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compresskd.artifact import compact, folder
from compresskd.artifact.content import Content
from compresskd.artifact.files import MODEL, read
from compresskd.run import atomic_folder

COMPACT = f"{MODEL}{compact.SUFFIX}"


def compact_sizes(content: Content, *, trust: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of the compact file: `compact_bytes` as written, `packed_bytes` without entropy coding."""
    coded, _ = compact.encode(content, trust=trust)
    packed, _ = compact.encode(content, coded=False, trust=trust)
    return {"compact_bytes": len(coded), "packed_bytes": len(packed)}


def write_final(
    checkpoint: Path, directory: Path, about: Mapping[str, Any], *, trust: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the model of a checkpoint to `directory`/model in both forms, replacing what was there as a whole.

    Returns:
        What the record says of it: compact_bytes, packed_bytes, interchange_bytes (safetensors and structure), and
        where the bytes of the compact file are.
    """
    content = replace(read(checkpoint, trust=trust), about=about)
    with atomic_folder(directory / MODEL) as temporary:
        folder.write(content, temporary)
        interchange = sum(file.stat().st_size for file in temporary.iterdir())
        split = compact.write_compact(content, temporary / COMPACT, trust=trust)
    packed = compact.encode(content, coded=False, trust=trust)[1].total
    return {
        "compact_bytes": split.total,
        "packed_bytes": packed,
        "interchange_bytes": interchange,
        "split": asdict(split),
    }

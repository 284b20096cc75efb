"""A model on disk, in two forms of the same content.

For interchange a folder: `model.safetensors` with packed integers, and `structure.json`. For the smallest size
one compact file, `.ckd`. Both say how the model was built, so that it reloads with no configuration and no
teacher at hand, and nothing in them is executed: architectures are looked up in compresskd, or in packages that
the caller names in `trust`.

    model = artifact.load("outputs/run/model/model.ckd")
    artifact.write_compact(artifact.content_of(model), Path("model.ckd"))
"""

from compresskd.artifact.about import about_of
from compresskd.artifact.compact import Split, encode, write_compact
from compresskd.artifact.construct import build, build_empty, thaw
from compresskd.artifact.content import Content, content_of, fingerprint, packages, targets
from compresskd.artifact.errors import ArtifactError
from compresskd.artifact.files import bytes_of, folder_bytes, load, load_with_content, read, save
from compresskd.artifact.sizes import compact_sizes, write_final

__all__ = [
    "ArtifactError",
    "Content",
    "Split",
    "about_of",
    "build",
    "build_empty",
    "bytes_of",
    "compact_sizes",
    "content_of",
    "encode",
    "fingerprint",
    "folder_bytes",
    "load",
    "load_with_content",
    "packages",
    "read",
    "save",
    "targets",
    "thaw",
    "write_compact",
    "write_final",
]

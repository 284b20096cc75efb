"""What a compression ratio is made of."""

from __future__ import annotations

from collections.abc import Mapping

FACTORS = ("student", "factorization", "bits", "coding")
_BYTES = ("file_bytes", "dense_bytes", "float_bytes", "packed_bytes")


def factors(teacher: Mapping[str, float] | None, size: Mapping[str, float]) -> dict[str, float]:
    """The factors of a stage's ratio of compact bytes; their product is that ratio.

    student: teacher / the architecture, dense, in floating point; left out where there is no teacher.
    factorization: that / the network with its factorized layers, in floating point. bits: that / the network
    with packed integers. coding: that / the file as it is.

    Args:
        teacher: `size` of the teacher in the record.
        size: `size` of the stage.

    Returns:
        The factors by name; none for records of versions that did not measure them.
    """
    if any(not size.get(key) for key in _BYTES):
        return {}
    found = {
        "factorization": size["dense_bytes"] / size["float_bytes"],
        "bits": size["float_bytes"] / size["packed_bytes"],
        "coding": size["packed_bytes"] / size["file_bytes"],
    }
    if teacher and teacher.get("file_bytes"):
        return {"student": teacher["file_bytes"] / size["dense_bytes"], **found}
    return found

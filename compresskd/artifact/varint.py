"""Numbers from 0 in as few bytes as they need: 7 bits a byte, the lowest first, 128 added to all but the last."""

from compresskd.artifact.errors import ArtifactError

_MAX_BYTES = 5


def varint(value: int) -> bytes:
    """The bytes of a number."""
    low, high = value & 127, value >> 7
    return bytes([low]) if not high else bytes([low | 128]) + varint(high)


def read_varint(data: bytes | memoryview, position: int, what: str) -> tuple[int, int]:
    """The number at a position, and the position after it. Raises ArtifactError where it does not end."""
    value = 0
    for place, byte in enumerate(data[position : position + _MAX_BYTES]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position + place + 1
    raise ArtifactError(f"{what}: the number at byte {position} does not end")

"""Random streams named by what they are for, so that no draw depends on how many came before it."""

import hashlib

import torch


def generator(purpose: str, *key: int) -> torch.Generator:
    """A CPU generator that is a pure function of `purpose` and `key` (such as a seed and an epoch).

    The stream is drawn on the CPU whatever the device of the data: the same seed then gives the same batches
    on every machine.
    """
    digest = hashlib.blake2b(repr((purpose, *map(int, key))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

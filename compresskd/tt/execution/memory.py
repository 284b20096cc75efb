"""Memory that a call frees stays with the process, for the next call to use."""

from functools import lru_cache

import torch

# The largest block by which glibc adapts is 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX), with the header of the block.
BLOCK_BYTES = (32 << 20) - (1 << 16)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc keep blocks of up to 32 MiB that are freed, in place of giving them back to the system.

    A process begins with 128 KiB: what is larger is mapped anew at each step of training, and each of its pages
    cleared. glibc raises that bound to the size of a block that is freed, so one is taken, never written to, and
    freed. Nothing happens where another allocator is used, or somebody has set the bound.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)

"""Several processes that work on one run: who they are, what they tell each other, and how they start and end.

The first process (rank 0) does all that one process does; the others follow it. They meet in three places: each takes
its share of every training batch, its turn of the batches of an evaluation, and waits while the first one does what
gains nothing from more processes. Nothing else differs, and a run of one process takes the same path.
"""

from compresskd.distributed.group import (
    ALONE,
    Group,
    ProcessLost,
    active,
    alone,
    of_batch,
    spread,
    together,
)

__all__ = ["ALONE", "Group", "ProcessLost", "active", "alone", "of_batch", "spread", "together"]

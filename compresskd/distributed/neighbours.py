"""Small tensors told among the processes of one machine, by sockets.

A batch norm that is spread over processes waits for a sum of some hundred bytes, twice a step. Gloo hands such a sum to
threads of its own, which costs one to two milliseconds, several times the layer itself; written to a socket by the
thread that waits for it, it takes fifty microseconds. A megabyte takes as long either way.
"""

from __future__ import annotations

import contextlib
import select
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_MOST_BYTES = 2**14  # of a tensor: two of them fit into any socket's buffer, so that nobody waits to send
_MOST_PROCESSES = 16  # each writes to all others
_SPIN = 2e-4  # seconds of asking before the process sleeps: to wake it takes longer than most waits
_SLEEP = 1.0  # seconds, after which signals have been looked at
_HEADER = 8  # bytes that tell the size: processes that have come out of step are found out


class Neighbours:
    """Connections of this process to all others, which are on the same machine.

    All call the same methods in the same order, with tensors of the same shapes.

    Args:
        rank: of this process.
        others: connections to the others by their ranks; this process is left out.
    """

    def __init__(self, rank: int, others: Mapping[int, socket.socket]) -> None:
        self._rank, self._others = rank, others
        for each in others.values():
            each.setblocking(False)

    def takes(self, tensor: Tensor) -> bool:
        """Whether `gathered` may be given such a tensor."""
        return tensor.device.type == "cpu" and 0 < tensor.numel() * tensor.element_size() <= _MOST_BYTES

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks.

        Raises:
            RuntimeError: another process has gone, or has sent something else.
        """
        own = tensor.detach().contiguous()
        data = own.reshape(-1).view(torch.uint8).numpy().tobytes()
        message = len(data).to_bytes(_HEADER, "little") + data
        try:
            for other in self._others.values():
                if other.send(message) != len(message):
                    raise RuntimeError("a small tensor did not fit into a socket's buffer")
            return [
                own if rank == self._rank else _received(self._others[rank], message[:_HEADER], own)
                for rank in range(len(self._others) + 1)
            ]
        except OSError as error:
            raise RuntimeError(f"the connection to another process has ended: {error}") from error


def _received(other: socket.socket, header: bytes, like: Tensor) -> Tensor:
    found = bytearray(_HEADER + like.numel() * like.element_size())
    view, have = memoryview(found), 0
    deadline = time.perf_counter() + _SPIN
    while have < len(found):
        try:
            count = other.recv_into(view[have:])
        except BlockingIOError:
            if time.perf_counter() > deadline:
                select.select([other], [], [], _SLEEP)
            continue
        if not count:
            raise ConnectionResetError("it was closed")
        have += count
        if have >= _HEADER and found[:_HEADER] != header:
            raise RuntimeError(
                "the processes have come out of step: another one has sent a tensor of another size"
            )
    return torch.frombuffer(found, dtype=like.dtype, offset=_HEADER).view(like.shape)


@contextmanager
def connected(store: Store, rank: int, world: int) -> Iterator[Neighbours | None]:
    """Within, the connections among `world` processes; None, in all of them, where some cannot reach each other.

    Args:
        store: in which no others than these write, with keys of its own.
        rank: of this process.
        world: how many there are.
    """
    with contextlib.ExitStack() as stack:
        # nobody else may enter this folder
        with tempfile.TemporaryDirectory(prefix="ckd-", ignore_cleanup_errors=True) as folder:
            listener = _listener(stack, Path(folder, "socket"), world)
            place = "" if listener is None else f"{_machine()}|{folder}"
            places = _said_by_all(store, "at", rank, world, place)
            called = _call(stack, rank, places)
            all_met = all(_said_by_all(store, "met", rank, world, "" if called is None else "yes"))
        if listener is None or called is None or not all_met:
            yield None
            return
        yield Neighbours(rank, {**dict(enumerate(called)), **_callers(stack, listener, rank, world)})


def _listener(stack: contextlib.ExitStack, path: Path, world: int) -> socket.socket | None:
    if world > _MOST_PROCESSES or not hasattr(socket, "AF_UNIX"):
        return None
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        listener.bind(str(path))
    except OSError:  # such as a path that is too long
        return None
    listener.listen(world)
    return listener


def _call(stack: contextlib.ExitStack, rank: int, places: Sequence[str]) -> list[socket.socket] | None:
    """Connections to the processes before this one, each of which knows its caller by the first byte; None where not
    all can be had.
    """
    machine = _machine()
    found: list[socket.socket] = []
    for place in places:
        where, _, folder = place.partition("|")
        if where != machine:
            return None
        if len(found) == rank:
            continue
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            other.connect(str(Path(folder, "socket")))
        except OSError:  # such as containers of one machine, each with files of its own
            return None
        other.sendall(bytes([rank]))
        found.append(other)
    return found


def _callers(
    stack: contextlib.ExitStack, listener: socket.socket, rank: int, world: int
) -> dict[int, socket.socket]:
    """Connections to the processes after this one, which have called it."""
    found: dict[int, socket.socket] = {}
    for _ in range(rank + 1, world):
        caller = stack.enter_context(listener.accept()[0])
        found[caller.recv(1)[0]] = caller
    return found


def _said_by_all(store: Store, what: str, rank: int, world: int, said: str) -> list[str]:
    store.set(f"{what}/{rank}", said)
    keys = [f"{what}/{other}" for other in range(world)]
    while not store.check(keys):  # asked, so that a thread that sees another process end can end this wait
        time.sleep(0.01)
    return [store.get(key).decode() for key in keys]


def _machine() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()

"""How the processes of a run start, find each other, and end.

The first process tells the others what to do through a store: that of torchrun, or one of its own where it has started
them itself. A thread in each watches the others: where the first one ends, however it does, the others end at once,
for they have nothing to save; where another one ends, the first is told, and ends the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from compresskd.distributed import neighbours
from compresskd.distributed.group import Group, ProcessLost, together

_LOOPBACK = "127.0.0.1"
_SECONDS = 0.3  # between two looks at the others
_GRACE = 5.0  # seconds in which a process fails by itself, or ends, before it is made to
_MEETING = timedelta(minutes=10)  # in which all processes of torchrun must have come
_WAITING = timedelta(
    days=7
)  # for the first process, which may compress a model meanwhile; watched by a thread
_OVER, _FAILED = "over", "failed"


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that were started together."""

    rank: int
    world: int
    local_rank: int
    host: str
    port: int

    @classmethod
    def of_environment(cls) -> Place | None:
        """As torchrun, or the first process of a run, has said it; None where this process is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        try:
            rank, world, local, port = (int(os.environ[name]) for name in names)
            return cls(rank, world, local, os.environ["MASTER_ADDR"], port) if world > 1 else None
        except (KeyError, ValueError):
            return None

    def store(self, *, serves: bool = False) -> Store:
        """A connection of its own to the store."""
        store = TCPStore(self.host, self.port, is_master=serves, timeout=_MEETING, wait_for_workers=False)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"compresskd/{attempt}", store)


@dataclass
class Others:
    """The other processes, as the first one sees them.

    Attributes:
        store: through which they are told.
        children: those that this process has started itself, from rank 1 on.
        serves: whether the store is this process's, and the others are not its children.
    """

    place: Place
    store: Store
    children: Sequence[subprocess.Popen[bytes]] = ()
    serves: bool = False
    orders: Iterator[int] = field(default_factory=itertools.count)
    lost: str = ""
    is_told: bool = False  # the main thread knows
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """See whether all are there, until `end`; tell the thread that called this where one is not."""
        main = threading.get_ident()
        threading.Thread(target=self._watch, args=(main,), daemon=True, name="compresskd-watch").start()

    def whom(self, error: Exception) -> str:
        """Who is gone, where a collective has failed."""
        self.is_told = True
        deadline = time.monotonic() + _GRACE
        while not self.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        reason = (str(error).splitlines() or [""])[0][:200]
        return self.lost or f"another process of the run has ended ({reason})"

    def meet(self, count: int) -> None:
        """Wait until all have come to carry out order number `count`.

        Raises:
            ProcessLost: one has ended on its way, such as one that cannot be started.
        """
        while not self.store.check([f"here/{count}/{rank}" for rank in range(1, self.place.world)]):
            if self.lost:
                self.is_told = True
                raise ProcessLost(self.lost)
            time.sleep(_SECONDS / 3)

    def end(self) -> None:
        """Let the others end, and see to it that those of this process do."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(_OVER, "1")
        if self.serves:
            time.sleep(3 * _SECONDS)  # until they have read it: the store ends with this process
        deadline = time.monotonic() + _GRACE
        for child in self.children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _watch(self, main: int) -> None:
        own = self.place.store()  # a connection is waited for by one thread at a time
        while not self._ended.wait(_SECONDS):
            self.lost = self._missing(own)
            if self.lost:
                break
        if not self._ended.wait(_GRACE) and self.lost and not self.is_told:
            told = type("ProcessLost", (ProcessLost,), {"__str__": lambda _: self.lost})
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(told))

    def _missing(self, store: Store) -> str:
        for rank in range(1, self.place.world):
            key = f"{_FAILED}/{rank}"
            child = self.children[rank - 1] if self.children else None
            code = None if child is None else child.poll()
            if code is None and self.children:
                continue
            if store.check([key]):
                return f"process {rank} of {self.place.world} failed: {store.get(key).decode()}"
            if code is not None:
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                return f"process {rank} of {self.place.world} has ended ({how})"
        return ""


_of_torchrun: Others | None = None


def met_by_torchrun() -> Others | None:
    """The other processes of torchrun, in the first one of them; None where torchrun started none."""
    global _of_torchrun  # noqa: PLW0603 - they meet once in the life of a process
    place = Place.of_environment()
    if place is not None and place.rank == 0 and _of_torchrun is None:
        serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") != str(True)
        _of_torchrun = Others(place, place.store(serves=serves), serves=serves)
    return _of_torchrun


@contextmanager
def launched(number: int, order: Any, device: torch.device) -> Iterator[Group]:
    """The group of `number` processes, of which this is the first and the others carry out `order`.

    Args:
        number: of processes; 1 starts none.
        order: what the others are to do, plain values.
        device: of this process.

    Raises:
        ProcessLost: one of the others has ended before.
    """
    if number == 1:
        with together(Group()) as group:
            yield group
        return
    with _threads_of(number):
        others = met_by_torchrun() or _start(number)
        group = Group(0, number, whom=others.whom)
        try:
            others.watch()
            count = next(others.orders)
            others.store.set(f"order/{count}", pickle.dumps((device.type, order)))  # pyright: ignore[reportArgumentType]
            others.meet(count)
            name = f"group/{count}"
            with _connected(others.store, name, group, device.type) as connected, together(connected):
                yield connected
        except BaseException:
            others.end()
            raise
        if others.children:
            others.end()


def _start(number: int) -> Others:
    """Start the others on this machine."""
    store = TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False)
    place = Place(0, number, 0, _LOOPBACK, store.port)
    told: dict[str, Any] = {"WORLD_SIZE": number, "MASTER_ADDR": _LOOPBACK, "MASTER_PORT": store.port}
    told["COMPRESSKD_FIRST"] = os.getpid()
    children = []
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    home = str(
        Path(__file__).resolve().parents[2]
    )  # where the package may be found only since it is started there
    told["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home]))
    for rank in range(1, number):
        own = {**told, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": torch.get_num_threads()}
        own.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "compresskd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **{name: str(value) for name, value in own.items()}},
                start_new_session=True,  # Ctrl-C in a terminal is for the first process
            )
        )
    return Others(place, PrefixStore("compresskd/0", store), children)


@contextmanager
def _threads_of(number: int) -> Iterator[None]:
    """Within, this process has its share of the threads of torch, unless the user has said how many it has."""
    before = torch.get_num_threads()
    if not os.environ.get("OMP_NUM_THREADS", "").isdigit():
        torch.set_num_threads(max(1, before // number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _connected(store: Store, name: str, group: Group, device: str) -> Iterator[Group]:
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=PrefixStore(name, store),
            rank=group.rank,
            world_size=group.world,
            timeout=_WAITING,
        )
        # NCCL wants one order of all that is sent by a device
        channel = None if device == "cuda" else dist.new_group(timeout=_WAITING)
    except RuntimeError as error:
        raise ProcessLost(group.whom(error)) from error
    try:
        with neighbours.connected(PrefixStore(f"{name}/near", store), group.rank, group.world) as near:
            yield replace(group, channel=channel, neighbours=near)
    finally:
        dist.destroy_process_group()


def follow(place: Place, carry_out: Callable[[Any], object]) -> int:
    """Carry out what the first process orders, until it ends; returns the exit code.

    Such a process has nothing to save and says nothing: where the first one ends, it ends.
    """
    store = place.store()
    threading.Thread(target=_end_with_the_first, args=(place,), daemon=True).start()
    for count in itertools.count():
        key = f"order/{count}"
        while not store.check([key]):
            time.sleep(_SECONDS / 3)
        device, order = pickle.loads(store.get(key))
        group = Group(place.rank, place.world)
        store.set(f"here/{count}/{place.rank}", "1")
        try:
            if device == "cuda":
                torch.cuda.set_device(place.local_rank)
            with _connected(store, f"group/{count}", group, device) as connected, together(connected):
                carry_out(order)
        except ProcessLost:
            time.sleep(_GRACE)  # the first one says what happened, and ends this process
            return 1
        except BaseException as error:
            store.set(f"{_FAILED}/{place.rank}", f"{type(error).__name__}: {error}")
            time.sleep(0 if os.environ.get("TORCHELASTIC_RUN_ID") is None else _GRACE)
            return 1
    return 0


def _end_with_the_first(place: Place) -> None:
    code = 0
    try:
        store = place.store()
        while not store.check([_OVER]):
            time.sleep(_SECONDS)
    except RuntimeError:  # the store has gone, and with it the first process
        code = 1
    os._exit(code)


def device_here(device: torch.device) -> torch.device:
    """The device of this process, where `device` is that of a run."""
    place = Place.of_environment()
    if place is None or device.type != "cuda":
        return device
    return torch.device("cuda", place.local_rank)

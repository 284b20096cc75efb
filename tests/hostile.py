"""A seeded generator of damage: what may have happened to a file, by accident or on purpose, and what is judged."""

import json
import os
import resource
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS, BYTES = 20, 2**30  # of the processor and of memory, that reading anything may take
WAIT = 120  # seconds by the clock, after which reading has stopped: what it waits for does not come
FULL = "COMPRESSKD_HOSTILE"  # =full tries as many cases as the project claims to withstand
_STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")
SENTINEL = "hostile_sentinel"  # a module that says so where it is imported
VALUES = [
    None, True, -1, 0, 0.5, float("nan"), float("inf"), 1e308, "", "x", "../../../etc/passwd", "\x00", "a" * 5000,
    [], {}, [None], [[[[]]]], {"x": 1}, {"_target_": "os.system", "_args_": ["touch executed"]}, f"{SENTINEL}.Run",
    ":os.system",
]  # fmt: skip
LARGE = [2**31, 2**63, 2**64, -(2**63), 10**30, [2**40, 2**40], [1] * 5000]


def count(usual, full):
    """How many cases to try: the usual number, or all of them where the environment asks for it."""
    return full if os.environ.get(FULL) == "full" else usual


@dataclass
class Watch:
    """What happened while something hostile was read."""

    started: list[str] = field(default_factory=list)
    armed: bool = False
    seconds: float = 0.0
    grown: int = 0  # bytes of the process's peak, over what it was

    def __str__(self):
        return f"at most {self.seconds:.1f} s and {self.grown / 2**20:.0f} MiB more for one"

    def __call__(self, event, arguments):
        if not self.armed:
            return
        imported = event == "import" and str(arguments[0]).partition(".")[0] == SENTINEL
        if imported or (event in _STARTS and arguments[0] != "git"):  # whose revision a record names
            self.started.append(f"{event} {arguments[:2]}")


WATCH = Watch()
sys.addaudithook(WATCH)


class TookTooLong(BaseException):
    pass


@contextmanager
def watched():
    """Inside nothing is executed, nothing takes more than SECONDS or WAIT, and nothing more than BYTES."""

    def stop(*_):
        raise TookTooLong

    WATCH.started.clear()
    before, started = _peak(), time.process_time()
    old = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAIT)
    WATCH.armed = True
    try:
        yield
    finally:
        WATCH.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in old.items():
            signal.signal(number, handler)
        WATCH.seconds = max(WATCH.seconds, time.process_time() - started)
        WATCH.grown = max(WATCH.grown, _peak() - before)
        assert not WATCH.started, WATCH.started
        assert WATCH.grown < BYTES, str(WATCH)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _some(choose, data):
    return choose.randrange(len(data)) if data else 0


def _flip(choose, data, _other):
    data = bytearray(data)
    for _ in range(choose.choice([1, 1, 2, 8])):
        if data:
            data[_some(choose, data)] ^= 1 << choose.randrange(8)
    return bytes(data)


def _zero(choose, data, _other):
    at = _some(choose, data)
    return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]


def _splice(choose, data, other):
    at, size = _some(choose, data), choose.choice([1, 8, 64, 4096])
    start = _some(choose, other)
    return data[:at] + other[start : start + size] + data[at + size :]


def _swap(choose, data, _other):
    a, b = sorted((_some(choose, data), _some(choose, data)))
    size = min(choose.choice([1, 16, 256]), b - a)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


BYTES_CHANGES = {
    "flipped": _flip,
    "cut": lambda choose, data, _: data[: _some(choose, data)],
    "cut in front": lambda choose, data, _: data[_some(choose, data) :],
    "longer": lambda choose, data, _: data + choose.randbytes(choose.choice([1, 8, 10_000])),
    "zeroed": _zero,
    "spliced": _splice,
    "swapped": _swap,
    "empty": lambda choose, data, _: b"",
    "random": lambda choose, data, _: choose.randbytes(len(data)),
    "another file": lambda choose, data, other: other,
}  # fmt: skip


def change_kind(choose, path):
    """Something else in place of a file; its name."""
    kind = choose.choice(["missing", "folder", "pipe", "link", "dangling", "device", "sparse"])
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.with_name(f"{path.name}.away").write_bytes(data)
        path.symlink_to(path.with_name(f"{path.name}.away"))
    elif kind in ("dangling", "device"):
        path.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    elif kind == "sparse":
        path.write_bytes(data)
        os.truncate(path, 2**26 + 1)
    return kind


def change_plain(choose, value, values=VALUES, keep=()):
    """Plain values with one of them, at a random place that is not below a key in `keep`, another one.

    Returns the values and the place.
    """
    value = json.loads(json.dumps(value))
    holder, key = {"": value}, ""
    for _ in range(choose.randint(1, 8)):
        inner = holder[key]
        keys = (
            list(inner)
            if isinstance(inner, dict)
            else list(range(len(inner)))
            if isinstance(inner, list)
            else []
        )
        keys = [k for k in keys if k not in keep]
        if not keys:
            break
        holder, key = inner, choose.choice(keys)
    how = choose.randrange(4)
    if how == 0 and isinstance(holder, dict) and key:
        del holder[key]
    elif how == 1 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] *= -1
    else:
        holder[key] = choose.choice(values)
    return value if key else holder[key], f"{key}"


def write_json(choose, path, value):
    """Valid JSON, or nearly."""
    text = json.dumps(value)
    how = choose.randrange(12)
    if how == 0:
        text = text.replace('"', '"\ud800', 1)
    elif how == 1 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:]
    elif how == 2:
        text = "[" * 100_000 + text
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

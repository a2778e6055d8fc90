"""A processor that hardly has time for a member: by a control group where we may make one, else by neighbours.

The ways, the first one that is permitted; RAFTKV_PARTITION_STARVING names one of them:

- `quota`: its control group (of either version) may run 20 ms of every 200 ms, all threads together, and stands still
  for the rest as soon as it has used them up; half of that when a second has passed and it was enough, and so on.
- `neighbours`: it is bound to one processor, where processes that never rest run beside it.
- `slices`: it is stopped and continued by signals. That is no starved processor, but what is left.

Each says in the end how long the member could not run, which is what must have happened.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tests.partition.disks import PREFIX, NotPermitted, Target

RUN_MS, OF_MS = 20, 200
PRESSED_SECONDS = 1.0
LEAST_US = 2500
"""Less is not given: nobody lives on that."""
NEIGHBOURS = 5
LOOK_SECONDS = 0.05
"""A member that starts again starves again, after so long at most."""
_SPIN = f"""
import os
while os.getppid() == {os.getpid()}:
    for _ in range(10**6):
        pass
"""


class Way(Protocol):
    """How a process is starved."""

    def take(self, pid: int) -> None:
        """Starve this process from now on."""
        ...

    def press(self) -> None:
        """Look whether they starve; called again and again."""
        ...

    def close(self) -> None:
        """Let go of all that still live."""
        ...

    def outcome(self) -> str:
        """What happened to them; raises AssertionError if nothing did. Before `close`."""
        ...


class Quota:
    """A control group that may run for a part of the time only."""

    def __init__(self) -> None:
        """
        Raises:
            NotPermitted
        """
        self._parent, self._second = _own_group()
        self._group = self._parent / f"{PREFIX}{os.getpid()}"
        try:
            if self._second:
                (self._parent / "cgroup.subtree_control").write_text("+cpu")
            self._group.mkdir(exist_ok=True)
            self._run_us = RUN_MS * 1000
            self._set()
        except OSError as error:
            self.close()
            raise NotPermitted(f"control group: {error}") from error
        self._held, self._looked = 0, time.monotonic()

    def _set(self) -> None:
        if self._second:
            (self._group / "cpu.max").write_text(f"{self._run_us} {OF_MS * 1000}")
        else:
            (self._group / "cpu.cfs_period_us").write_text(str(OF_MS * 1000))
            (self._group / "cpu.cfs_quota_us").write_text(str(self._run_us))

    def take(self, pid: int) -> None:
        # Whoever starts needs all its time: with less and less it never would.
        self._run_us = RUN_MS * 1000
        self._set()
        # It may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            (self._group / "cgroup.procs").write_text(str(pid))

    def press(self) -> None:
        if time.monotonic() < self._looked + PRESSED_SECONDS:
            return
        held, self._looked = self._stat()[0], time.monotonic()
        if held == self._held and self._run_us > LEAST_US:
            self._run_us //= 2
            self._set()
        self._held = held

    def _stat(self) -> tuple[int, int]:
        """In how many periods they were held back, of how many in which they ran."""
        stat = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        return int(stat["nr_throttled"]), int(stat["nr_periods"])

    def close(self) -> None:
        _remove(self._group)

    def outcome(self) -> str:
        held, periods = self._stat()
        assert held, f"the control group held nobody back in {periods} periods"
        given = f"{self._run_us / 1000:g} ms of {OF_MS}"
        return (
            f"starved by a control group ({'v2' if self._second else 'v1'}): {given}, held back in {held} of {periods}"
        )


def _own_group() -> tuple[Path, bool]:
    """The directory of our control group for processors, and whether it is of the second version."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            for _, controllers, path in groups:
                if "cpu" in controllers.split(","):
                    return Path(place) / path.lstrip("/"), False
        if kind == "cgroup2":
            for number, _, path in groups:
                directory = Path(place) / path.lstrip("/")
                with contextlib.suppress(OSError):
                    if number == "0" and "cpu" in (directory / "cgroup.controllers").read_text().split():
                        return directory, True
    raise NotPermitted("no control group for processors")


def _remove(group: Path) -> None:
    """Remove a control group; whoever lives in it goes back to ours. It is empty some time after they have ended."""
    deadline = time.monotonic() + 20.0
    while group.exists():
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()
        assert time.monotonic() < deadline, f"{group} is left"
        if group.exists():
            time.sleep(0.02)


def remove_left_groups() -> None:
    """Remove groups that runs left whose process is gone."""
    with contextlib.suppress(NotPermitted):
        for left in _own_group()[0].glob(f"{PREFIX}*"):
            pid = left.name.removeprefix(PREFIX)
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                _remove(left)


class Neighbours:
    """Processes that never rest, on the one processor that is left to whom they starve."""

    def __init__(self) -> None:
        """
        Raises:
            NotPermitted
        """
        self._all = os.sched_getaffinity(0)
        if len(self._all) < 2:
            # All others would starve as well.
            raise NotPermitted("there is one processor only")
        self._processor = max(self._all)
        self._taken: list[int] = []
        self._began = time.monotonic()
        self._waited: dict[int, int] = {}
        self._spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(NEIGHBOURS)]
        for one in self._spinning:
            os.sched_setaffinity(one.pid, {self._processor})

    def take(self, pid: int) -> None:
        self._taken.append(pid)
        self._bind(pid, {self._processor})
        self._waited[pid] = -_waited_ns(pid)

    def press(self) -> None:
        pass

    @staticmethod
    def _bind(pid: int, processors: set[int]) -> None:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), processors)

    def close(self) -> None:
        for one in self._spinning:
            one.kill()
            one.wait()
        for pid in self._taken:
            self._bind(pid, self._all)

    def outcome(self) -> str:
        waited = sum(before + _waited_ns(pid) for pid, before in self._waited.items() if _waited_ns(pid)) / 1e9
        assert waited > 0, "neighbours kept nobody waiting"
        seconds = time.monotonic() - self._began
        return f"starved by {NEIGHBOURS} neighbours, for whom it waited {waited:.1f} s of {seconds:.1f}"


def _waited_ns(pid: int) -> int:
    """How long the threads of a process could have run and did not; 0 when it has ended."""
    waited = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            waited += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])
    return waited


class Slices:
    """Signals that stop a process and let it go on."""

    def __init__(self) -> None:
        self._pid = 0
        self._stops = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, pid: int) -> None:
        self._pid = pid

    def press(self) -> None:
        pass

    def _work(self) -> None:
        while not self._done.wait(RUN_MS / 1000):
            pid = self._pid
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self._stops += 1
                    self._done.wait((OF_MS - RUN_MS) / 1000)
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def outcome(self) -> str:
        assert self._stops, "nobody was stopped"
        return f"starved by signals, for want of anything better: stopped {self._stops} times"


WAYS: dict[str, Callable[[], Way]] = {"quota": Quota, "neighbours": Neighbours, "slices": Slices}


@contextlib.contextmanager
def way() -> Iterator[Way]:
    """The first way that is permitted.

    Raises:
        NotPermitted: the one that was asked for is not.
    """
    wanted = os.environ.get("RAFTKV_PARTITION_STARVING")
    made: Way | None = None
    for name, make in WAYS.items():
        if wanted in (None, "", name):
            try:
                made = make()
                break
            except NotPermitted:
                if wanted:
                    raise
    if made is None:
        raise NotPermitted(f"RAFTKV_PARTITION_STARVING is none of {', '.join(WAYS)}")
    try:
        yield made
    finally:
        made.close()


def starve(target: Target, done: threading.Event) -> str:
    """Starve a member until `done`, each of its lives; what came of it."""
    starved = 0
    with way() as used:
        while not done.wait(LOOK_SECONDS):
            if target.running() and target.pid != starved:
                starved = target.pid
                used.take(starved)
            used.press()
        return used.outcome()
